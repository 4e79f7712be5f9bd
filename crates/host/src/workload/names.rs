//! The names by which language models' programs, modules and libraries are known.
//!
//! A row is a name, the runtime it speaks for, and how strong a sign it is.

/// How much a sign says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strength {
    /// Decides together with another.
    Weak,
    /// Decides by itself.
    Strong,
}
use Strength::{Strong, Weak};

/// Names of programs of their own, by the words their name begins with.
pub(super) const PROGRAMS: [(&str, &str, Strength); 28] = [
    ("ollama", "ollama", Strong),
    ("ollama-runner", "ollama", Strong),
    ("llama-server", "llama.cpp", Strong),
    ("llama-cli", "llama.cpp", Strong),
    ("llama-run", "llama.cpp", Strong),
    ("llama-bench", "llama.cpp", Strong),
    ("llama-embedding", "llama.cpp", Strong),
    ("llama.cpp", "llama.cpp", Strong),
    ("llamafile", "llamafile", Strong),
    ("llama", "llama.cpp", Weak),
    ("vllm", "vllm", Strong),
    ("text-generation-launcher", "text-generation-server", Strong),
    ("text-generation-router", "text-generation-server", Strong),
    ("text-generation-server", "text-generation-server", Strong),
    ("text-embeddings-router", "text-generation-server", Strong),
    ("tensorflow_model_server", "tensorflow", Strong),
    ("torchserve", "torch", Strong),
    ("torchrun", "torch", Strong),
    ("tritonserver", "triton", Strong),
    ("trtllm-serve", "tensorrt", Strong),
    ("koboldcpp", "llama.cpp", Strong),
    ("local-ai", "local-ai", Strong),
    ("mistralrs-server", "mistral", Strong),
    ("mistral", "mistral", Weak),
    ("whisper-server", "whisper", Strong),
    ("whisper-cli", "whisper", Strong),
    ("whisper", "whisper", Weak),
    ("sglang", "sglang", Strong),
];

/// Modules and packages of interpreters, by their first component.
pub(super) const MODULES: [(&str, &str, Strength); 28] = [
    ("vllm", "vllm", Strong),
    ("sglang", "sglang", Strong),
    ("llama_cpp", "llama.cpp", Strong),
    ("llama", "llama.cpp", Strong),
    ("gguf", "ggml", Strong),
    ("ggml", "ggml", Strong),
    ("ollama", "ollama", Weak),
    ("text_generation_server", "text-generation-server", Strong),
    ("transformers", "transformers", Strong),
    ("huggingface", "transformers", Strong),
    ("huggingface_hub", "transformers", Weak),
    ("sentence_transformers", "transformers", Strong),
    ("exllama", "exllama", Strong),
    ("exllamav2", "exllama", Strong),
    ("fastchat", "fastchat", Strong),
    ("lmdeploy", "lmdeploy", Strong),
    ("deepspeed", "torch", Strong),
    ("tensorrt_llm", "tensorrt", Strong),
    ("mlc_llm", "mlc", Strong),
    ("torch", "torch", Strong),
    ("tensorflow", "tensorflow", Strong),
    ("onnxruntime", "onnxruntime", Strong),
    ("whisper", "whisper", Strong),
    ("faster_whisper", "whisper", Strong),
    ("whisperx", "whisper", Strong),
    ("mistral_inference", "mistral", Strong),
    ("mistral", "mistral", Weak),
    ("ctranslate2", "ctranslate2", Strong),
];

/// Whole words in the name of a script.
pub(super) const SCRIPT_WORDS: [(&str, &str, Strength); 14] = [
    ("vllm", "vllm", Strong),
    ("llama", "llama.cpp", Weak),
    ("llm", "unknown", Weak),
    ("ollama", "ollama", Weak),
    ("gguf", "ggml", Weak),
    ("ggml", "ggml", Weak),
    ("transformers", "transformers", Weak),
    ("huggingface", "transformers", Weak),
    ("torch", "torch", Weak),
    ("tensorflow", "tensorflow", Weak),
    ("onnxruntime", "onnxruntime", Weak),
    ("whisper", "whisper", Weak),
    ("mistral", "mistral", Weak),
    ("deepspeed", "torch", Weak),
];

/// Beginnings of names of libraries.
pub(super) const LIBRARIES: [(&str, &str, Strength); 16] = [
    ("libllama.", "llama.cpp", Strong),
    ("libggml", "ggml", Strong),
    ("libwhisper.", "whisper", Strong),
    ("libtorch.", "torch", Strong),
    ("libtorch_cpu.", "torch", Strong),
    ("libtorch_cuda.", "torch", Strong),
    ("libtorch_python.", "torch", Strong),
    ("libtensorflow", "tensorflow", Strong),
    ("_pywrap_tensorflow", "tensorflow", Strong),
    ("libonnxruntime", "onnxruntime", Strong),
    ("onnxruntime_pybind11_state", "onnxruntime", Strong),
    ("libctranslate2", "ctranslate2", Strong),
    ("libnvinfer.", "tensorrt", Strong),
    ("libmlc_llm", "mlc", Strong),
    ("libcudart.", "cuda", Weak),
    ("libcublas.", "cuda", Weak),
];

/// Packages that have no library of a telling name.
pub(super) const LIBRARY_PACKAGES: [(&str, &str); 3] =
    [("/vllm/", "vllm"), ("/exllamav2", "exllama"), ("/flash_attn", "torch")];

/// Programs that run the programs that their arguments name.
pub(super) const INTERPRETERS: [&str; 12] = [
    "python",
    "pypy",
    "uvicorn",
    "gunicorn",
    "hypercorn",
    "celery",
    "torchrun",
    "accelerate",
    "ipython",
    "uv",
    "conda",
    "poetry",
];

/// Programs that hold files only to move, show or edit them.
pub(super) const FILE_TOOLS: [&str; 44] = [
    "cp",
    "mv",
    "cat",
    "dd",
    "tar",
    "gzip",
    "pigz",
    "zstd",
    "xz",
    "bzip2",
    "zip",
    "unzip",
    "rsync",
    "scp",
    "sftp",
    "sftp-server",
    "sshd",
    "ssh",
    "curl",
    "wget",
    "aria2c",
    "rclone",
    "restic",
    "borg",
    "git",
    "git-lfs",
    "less",
    "more",
    "tail",
    "head",
    "grep",
    "rg",
    "find",
    "vim",
    "vi",
    "nvim",
    "nano",
    "emacs",
    "sha256sum",
    "md5sum",
    "b3sum",
    "file",
    "strings",
    "hexdump",
];

/// Options whose value is a model.
pub(super) const MODEL_OPTIONS: [&str; 10] = [
    "-m",
    "--model",
    "--model-path",
    "--model_path",
    "--model-name",
    "--model-id",
    "--model_id",
    "--model-name-or-path",
    "--model_name_or_path",
    "--mmproj",
];

/// Families of models that the value of such an option names.
pub(super) const MODEL_FAMILIES: [&str; 12] = [
    "llama",
    "codellama",
    "mistral",
    "mixtral",
    "qwen",
    "gemma",
    "phi",
    "deepseek",
    "falcon",
    "bert",
    "gpt2",
    "whisper",
];
