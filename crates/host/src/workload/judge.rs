//! Decides whether a process runs a language model. Pure.
//!
//! A sign is strong or weak; one strong sign or two different weak ones decide. A word counts
//! only where a program is named (the executable, a script, a module, an import, a library, a
//! model's option) and only whole: `html`, `mail` and `/home/llama/notes.py` are no signs. A
//! tool that moves or shows files is never a workload, whatever it has open.

use super::names::Strength::{self, Strong, Weak};
use super::names::{
    FILE_TOOLS, INTERPRETERS, LIBRARIES, LIBRARY_PACKAGES, MODEL_FAMILIES, MODEL_OPTIONS, MODULES,
    PROGRAMS, SCRIPT_WORDS,
};
use crate::process::is_model;
use crate::text::base_name;

/// What is known of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Signs<'a> {
    pub name: &'a str,
    pub executable: Option<&'a str>,
    pub arguments: &'a [String],
    /// Paths of mapped libraries.
    pub libraries: &'a [String],
    pub open_files: &'a [String],
    /// Ids or paths of graphics processors that it uses.
    pub gpus: &'a [String],
}

/// Why a process is taken for a language model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// ollama, llama.cpp, vllm, torch, …
    pub runtime: &'static str,
    pub evidence: Vec<String>,
    pub model_files: Vec<String>,
}

/// The most that is said for one process.
const EVIDENCE_MAX: usize = 16;

/// Whether the executable may run a model by libraries that only its memory map shows.
#[must_use]
pub fn deserves_a_closer_look(signs: &Signs<'_>) -> bool {
    !is_file_tool(signs)
        && (is_interpreter(signs)
            || !signs.gpus.is_empty()
            || signs.open_files.iter().any(|file| is_model(file))
            || judge(signs).is_some())
}

/// The verdict on a process; `None` when it runs no language model.
#[must_use]
pub fn judge(signs: &Signs<'_>) -> Option<Verdict> {
    if is_file_tool(signs) {
        return None;
    }
    let mut case = Case::default();
    judge_program(signs, &mut case);
    if is_interpreter(signs) {
        judge_arguments(signs.arguments, &mut case);
    }
    judge_libraries(signs.libraries, &mut case);
    judge_models(signs, &mut case);
    if !signs.gpus.is_empty() {
        // Browsers and desktops use one, too.
        case.add(Weak, "unknown", "gpu", format!("uses {}", signs.gpus.join(", ")));
    }
    case.verdict()
}

/// The signs found so far.
#[derive(Debug, Default)]
struct Case {
    strong: bool,
    /// Sources of weak signs; two of the same say no more than one.
    weak: Vec<&'static str>,
    runtimes: Vec<(Strength, &'static str)>,
    evidence: Vec<String>,
    model_files: Vec<String>,
}

impl Case {
    fn add(
        &mut self,
        strength: Strength,
        runtime: &'static str,
        source: &'static str,
        evidence: String,
    ) {
        match strength {
            Strong => self.strong = true,
            Weak if self.weak.contains(&source) => {}
            Weak => self.weak.push(source),
        }
        self.runtimes.push((strength, runtime));
        if self.evidence.len() < EVIDENCE_MAX && !self.evidence.contains(&evidence) {
            self.evidence.push(evidence);
        }
    }

    fn model_file(&mut self, path: &str) {
        if self.model_files.len() < EVIDENCE_MAX && !self.model_files.iter().any(|p| p == path) {
            self.model_files.push(path.to_owned());
        }
    }

    fn verdict(mut self) -> Option<Verdict> {
        if !self.strong && self.weak.len() < 2 {
            return None;
        }
        let named = |wanted: Strength| {
            let fitting = |(strength, runtime): &&(Strength, &str)| {
                *strength == wanted && !["unknown", "cuda"].contains(runtime)
            };
            self.runtimes.iter().find(fitting).map(|&(_, runtime)| runtime)
        };
        let runtime = named(Strong).or_else(|| named(Weak)).unwrap_or("unknown");
        self.model_files.sort();
        Some(Verdict { runtime, evidence: self.evidence, model_files: self.model_files })
    }
}

/// What the program is called: the process, its executable, and the word it was started as.
fn names<'a>(signs: &Signs<'a>) -> impl Iterator<Item = &'a str> {
    let started_as = signs.arguments.first().map(String::as_str).unwrap_or_default();
    // A title may follow the name.
    let started_as = started_as.split([' ', ':']).next().unwrap_or_default();
    [Some(signs.name), signs.executable, Some(started_as)].into_iter().flatten().map(base_name)
}

fn is_interpreter(signs: &Signs<'_>) -> bool {
    names(signs).any(|name| {
        INTERPRETERS.iter().any(|interpreter| {
            name.strip_prefix(interpreter)
                .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
        })
    })
}

fn is_file_tool(signs: &Signs<'_>) -> bool {
    // An interpreted tool is judged by its script: `git-lfs` is no interpreter, `rclone` none.
    names(signs).any(|name| FILE_TOOLS.contains(&name))
}

fn judge_program(signs: &Signs<'_>, case: &mut Case) {
    for name in names(signs) {
        let lower = name.to_ascii_lowercase();
        let found = PROGRAMS.iter().filter(|(program, ..)| begins_with_words(&lower, program));
        if let Some((_, runtime, strength)) = found.max_by_key(|(program, ..)| program.len()) {
            case.add(*strength, runtime, "program", format!("program {name}"));
        }
    }
}

/// Whether a name is `start`, or goes on after it with another word: `llama-server-cuda`.
fn begins_with_words(name: &str, start: &str) -> bool {
    name.strip_prefix(start).is_some_and(|rest| {
        rest.is_empty() || rest.starts_with(['-', '_', '.']) && !rest.starts_with("._")
    })
}

/// Of an interpreter: its script, the module after `-m`, imports after `-c`, models it is
/// given.
fn judge_arguments(arguments: &[String], case: &mut Case) {
    let mut words = arguments.iter().skip(1).map(String::as_str).take(64);
    let mut program_seen = false;
    while let Some(word) = words.next() {
        match word {
            "-m" if !program_seen => {
                program_seen = true;
                if let Some(module) = words.next() {
                    judge_module(module, "module", case);
                }
            }
            "-c" if !program_seen => {
                program_seen = true;
                words.next().iter().for_each(|code| judge_imports(code, case));
            }
            _ if word.starts_with('-') => {
                let (option, value) = match word.split_once('=') {
                    Some((option, value)) => (option, Some(value)),
                    None => (word, None),
                };
                if program_seen && MODEL_OPTIONS.contains(&option) {
                    value.or_else(|| words.next()).iter().for_each(|v| judge_model_option(v, case));
                }
            }
            // `uvicorn app.main:app`, `python serve.py`, `python /usr/local/bin/vllm serve X`.
            _ if !program_seen => {
                program_seen = true;
                judge_script(word, case);
            }
            _ => {}
        }
    }
}

fn judge_script(script: &str, case: &mut Case) {
    if let Some((_, inside)) = script.rsplit_once("site-packages/") {
        judge_module(&inside.replace('/', "."), "module", case);
        return;
    }
    let name = base_name(script).split(':').next().unwrap_or_default().to_ascii_lowercase();
    let program = PROGRAMS.iter().filter(|(program, _, strength)| {
        *strength == Strong && begins_with_words(name.trim_end_matches(".py"), program)
    });
    if let Some((_, runtime, strength)) = program.max_by_key(|(program, ..)| program.len()) {
        case.add(*strength, runtime, "script", format!("script {}", base_name(script)));
        return;
    }
    for word in name.split(|c: char| !c.is_ascii_alphanumeric()) {
        if let Some((_, runtime, strength)) = SCRIPT_WORDS.iter().find(|known| known.0 == word) {
            case.add(*strength, runtime, "script", format!("script {}", base_name(script)));
        }
    }
}

fn judge_module(module: &str, what: &str, case: &mut Case) {
    let first = module.split(['.', ' ', ',', ';', '-']).next().unwrap_or_default();
    if let Some((name, runtime, strength)) = MODULES.iter().find(|known| known.0 == first) {
        case.add(*strength, runtime, "module", format!("{what} {name}"));
    }
}

fn judge_imports(code: &str, case: &mut Case) {
    for statement in code.split([';', '\n']).take(64) {
        let mut words = statement.split_whitespace();
        if let (Some("import" | "from"), Some(module)) = (words.next(), words.next()) {
            judge_module(module, "import", case);
        }
    }
}

fn judge_model_option(value: &str, case: &mut Case) {
    let name = value.to_ascii_lowercase();
    let family =
        name.split(|c: char| !c.is_ascii_alphabetic()).find(|w| MODEL_FAMILIES.contains(w));
    if is_model(value) || family.is_some() {
        case.add(Weak, "unknown", "model option", format!("model {value}"));
    }
}

fn judge_libraries(libraries: &[String], case: &mut Case) {
    for path in libraries {
        let name = base_name(path);
        // Packages first: torch below vllm is vllm's.
        if let Some((_, runtime)) = LIBRARY_PACKAGES.iter().find(|known| path.contains(known.0)) {
            case.add(Strong, runtime, "library", format!("library {name}"));
        }
        if let Some((_, runtime, strength)) = LIBRARIES.iter().find(|l| name.starts_with(l.0)) {
            case.add(*strength, runtime, "library", format!("library {name}"));
        }
    }
}

/// Whether a mapped file is worth handing to [`judge`].
pub(super) fn is_telling_library(path: &str) -> bool {
    let name = base_name(path);
    LIBRARIES.iter().any(|known| name.starts_with(known.0))
        || LIBRARY_PACKAGES.iter().any(|known| path.contains(known.0))
        || is_model(path)
}

fn judge_models(signs: &Signs<'_>, case: &mut Case) {
    // A map shows what was opened, mapped and closed again.
    for path in signs.open_files.iter().chain(signs.libraries).filter(|path| is_model(path)) {
        case.model_file(path);
        let lower = path.to_ascii_lowercase();
        // Only language models come in these; the others hold anything learned.
        let own = [".gguf", ".ggml"].iter().any(|suffix| lower.ends_with(suffix));
        let strength = if own { Strong } else { Weak };
        let runtime = if own { "ggml" } else { "unknown" };
        case.add(strength, runtime, "model file", format!("open model {path}"));
    }
    for argument in signs.arguments.iter().skip(1).take(64) {
        let value = argument.rsplit('=').next().unwrap_or_default();
        if is_model(value) {
            case.model_file(value);
            case.add(Weak, "unknown", "model option", format!("model {value}"));
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
