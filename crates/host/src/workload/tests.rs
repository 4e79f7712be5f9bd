//! The table of what is a language model's process, and what only looks like one.

use super::*;
use proptest::prelude::*;

/// `EXE ARGUMENTS… | FILES… | LIBRARIES… | GPUS…`; the name is that of the executable.
fn verdict(line: &str) -> Option<Verdict> {
    let mut parts = line
        .split('|')
        .map(|part| part.split_whitespace().map(|word| word.replace('~', " ")).collect::<Vec<_>>());
    let arguments = parts.next().unwrap();
    let (open_files, libraries, gpus) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let executable = arguments.first().cloned().unwrap_or_default();
    judge(&Signs {
        name: base_name(&executable),
        executable: Some(&executable),
        arguments: &arguments,
        libraries: &libraries,
        open_files: &open_files,
        gpus: &gpus,
    })
}

#[test]
fn language_models() {
    for (line, runtime) in [
        ("/usr/local/bin/ollama serve", "ollama"),
        (
            "/usr/local/bin/ollama runner --model /root/.ollama/models/blobs/sha256-aa --port 4000",
            "ollama",
        ),
        ("/opt/llama.cpp/build/bin/llama-server -m /models/a.gguf", "llama.cpp"),
        ("/opt/bin/llama-server-cuda --port 80", "llama.cpp"),
        ("./main -m /models/a.Q4_K_M.gguf | /models/a.Q4_K_M.gguf", "ggml"),
        ("/app/server | | /usr/lib/libllama.so.1", "llama.cpp"),
        ("/opt/mixtral.llamafile | /opt/a.gguf", "ggml"),
        ("/usr/bin/llamafile -m x.gguf", "llamafile"),
        ("python3 -m vllm.entrypoints.openai.api_server --model mistralai/Mistral-7B", "vllm"),
        ("/usr/bin/python3.11 /usr/local/bin/vllm serve Qwen/Qwen2-7B", "vllm"),
        ("python /usr/lib/python3/site-packages/vllm/entrypoints/api_server.py", "vllm"),
        ("/usr/local/bin/text-generation-launcher --model-id x", "text-generation-server"),
        ("/usr/local/bin/text-generation-server serve x", "text-generation-server"),
        ("python3 -m llama_cpp.server --model a.gguf", "llama.cpp"),
        ("python3 serve.py | | /usr/lib/python3/site-packages/torch/lib/libtorch_cpu.so", "torch"),
        (
            "python3 app.py | | /x/onnxruntime/capi/onnxruntime_pybind11_state.cpython-311.so",
            "onnxruntime",
        ),
        ("python3 app.py | | /x/tensorflow/python/_pywrap_tensorflow_internal.so", "tensorflow"),
        ("uvicorn app:app | /models/model-00001.safetensors | | /dev/nvidia0", "unknown"),
        ("python3 -c import~torch;print(1)", "torch"),
        ("python3 -c from~transformers~import~pipeline", "transformers"),
        ("python3 serve_llama.py --model meta-llama/Llama-3", "llama.cpp"),
        ("python3 whisper_server.py | /models/ggml-base.bin", "whisper"),
        ("torchrun --nproc 2 train.py", "torch"),
        ("/usr/bin/tritonserver --model-repository=/m", "triton"),
        ("/usr/bin/tensorflow_model_server --port=1", "tensorflow"),
        ("/opt/whisper-server -m /models/ggml-base.en.bin", "whisper"),
        ("/opt/infer | /m/pytorch_model.bin | | /dev/nvidia0", "unknown"),
        ("/opt/koboldcpp --model x.gguf", "llama.cpp"),
    ] {
        let seen = verdict(line).unwrap_or_else(|| panic!("not recognised: {line}"));
        assert_eq!(seen.runtime, runtime, "{line}: {seen:?}");
        assert!(!seen.evidence.is_empty(), "{line}");
    }
}

#[test]
fn what_only_looks_like_one() {
    for line in [
        "/usr/sbin/sendmail -bd",
        "/usr/bin/mail -s html",
        "/usr/lib/dovecot/imap mail.example.org",
        "/usr/bin/python3",
        "/usr/bin/python3 /usr/bin/networkd-dispatcher --run-startup-triggers",
        "/usr/bin/python3 -m http.server",
        "python3 /srv/ai/mail.py --html model",
        "python3 /home/llama/notes.py",
        "python3 train.py --model railway",
        "python3 manage.py runserver --settings ml.settings",
        "python3 data_transformers.py",
        "python3 -c import~os;print('torch')",
        "python3 -c print('import~torch')",
        "python3 -m pip install torch",
        "/usr/bin/vim llama.py",
        "grep -r transformers /srv",
        "/usr/bin/rsync /models/a.gguf host:/ | /models/a.gguf",
        "/usr/bin/tar cf - /models | /models/a.safetensors",
        "/usr/lib/openssh/sftp-server | /models/a.gguf",
        "/usr/bin/Xorg :0 | | | /dev/dri/renderD128",
        "/usr/lib/firefox/firefox --html | /home/a/places.sqlite | | /dev/dri/renderD128",
        "/usr/bin/mysqld --model=x | /var/lib/mysql/ibdata1",
        "/usr/bin/llamadrama",
        "/usr/bin/ollamatic serve",
        "/opt/torchlight/torchlight",
        "/usr/bin/whispercast",
        "/opt/backup/agent | /models/pytorch_model.bin",
        "/usr/bin/tail -f /var/log/ollama.log",
        "/bin/sh -c ollama~is~down",
        "nginx:~worker~process",
        "",
    ] {
        assert_eq!(verdict(line), None, "{line}");
    }
}

#[test]
fn what_is_told_of_one() {
    let seen = verdict(
        "/usr/bin/llama-server -m /m/a.gguf --mmproj=/m/b.gguf | /m/a.gguf | /usr/lib/libggml-cuda.so /m/c.gguf | 0000:01:00.0",
    )
    .unwrap();
    assert_eq!(seen.model_files, ["/m/a.gguf", "/m/b.gguf", "/m/c.gguf"]);
    let expected = [
        "program llama-server",
        "library libggml-cuda.so",
        "open model /m/a.gguf",
        "open model /m/c.gguf",
        "model /m/a.gguf",
        "model /m/b.gguf",
        "uses 0000:01:00.0",
    ];
    assert_eq!(seen.evidence, expected);
}

#[test]
fn who_deserves_a_closer_look() {
    let look = |name: &str, gpus: &[String]| {
        let arguments = [name.to_owned()];
        let signs = Signs { name, arguments: &arguments, gpus, ..Signs::default() };
        deserves_a_closer_look(&signs)
    };
    assert!(look("python3.11", &[]) && look("gunicorn", &[]) && look("ollama", &[]));
    assert!(look("anything", &["/dev/kfd".to_owned()]));
    assert!(!look("nginx", &[]) && !look("pythonesque", &[]) && !look("rsync", &["x".to_owned()]));
}

proptest! {
    #[test]
    fn anything_goes_in(
        name in "\\PC{0,20}",
        words in prop::collection::vec("(-c|-m|--model=?|import |from |[a-z./]{0,9}|\\PC{0,9}){1,3}", 0..8),
        files in prop::collection::vec("\\PC{0,30}", 0..4),
    ) {
        let words: Vec<String> = std::iter::once("python3".to_owned()).chain(words).collect();
        let signs = Signs {
            name: &name,
            executable: Some(&name),
            arguments: &words,
            libraries: &files,
            open_files: &files,
            gpus: &files,
        };
        // Whatever is no tool and has a verdict is looked at.
        prop_assert!(judge(&signs).is_none() || deserves_a_closer_look(&signs));
    }
}
