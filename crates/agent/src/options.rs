//! The agent's command line: its own flags, and those of the older agent with one dash.

use crate::config::{Error, File, default_file};
use clap::Parser;
use model::{Facts, terminal};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

/// Watches this machine and brings every change of it to the server.
///
/// Runs with whatever rights it is given: as root it sees everything; as an ordinary user it
/// sees what that user may, and says what it can't.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "twin-agent",
    version,
    after_help = "Exit status: 0 ended in order, 1 failed, 2 wrong usage, 64 wrong configuration.\n\nThe older agent's flags with one dash (-interval, -bridge, -log, -state-dir, -proc, -net, -verbose, -output, -pretty, -version) are understood."
)]
pub struct Options {
    /// Configuration file [default: /etc/safetytwin/agent.yaml; for users ~/.config/safetytwin/agent.yaml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Seconds between full looks [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub interval: Option<f64>,
    /// The server: http://HOST:PORT [default: http://127.0.0.1:8470]
    #[arg(long, visible_alias = "bridge", value_name = "URL", env = "SAFETYTWIN_SERVER")]
    pub server: Option<String>,
    /// Write the log to a file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where the agent keeps its key and what it could not send yet
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Report processes (yes unless told no)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub proc: Option<bool>,
    /// Report the network (yes unless told no)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub net: Option<bool>,
    /// The name this host goes by [default: its hostname]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// File with the token that the server wants
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Say more
    #[arg(long, short, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub verbose: Option<bool>,
    /// Look once, print the facts, and end
    #[arg(long)]
    pub once: bool,
    /// With --once: as JSON (the only form there is)
    #[arg(long, requires = "once")]
    pub json: bool,
    /// Look once and write the facts to a file; - is standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Indent the facts
    #[arg(long)]
    pub pretty: bool,
}

/// The older agent's flags, which had one dash.
const OLD: [&str; 10] = [
    "interval",
    "bridge",
    "log",
    "state-dir",
    "proc",
    "net",
    "verbose",
    "output",
    "pretty",
    "version",
];

/// Arguments with the older agent's flags in today's form.
pub fn modern(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut modern: Vec<OsString> = arguments.by_ref().take(1).collect();
    for argument in arguments {
        let old = argument.to_str().and_then(|text| {
            let flag = text.strip_prefix('-').filter(|rest| !rest.starts_with('-'))?;
            OLD.contains(&flag.split('=').next()?).then(|| format!("--{flag}"))
        });
        modern.push(old.map_or(argument, OsString::from));
    }
    modern
}

impl Options {
    /// Whether to look once and end.
    #[must_use]
    pub fn looks_once(&self) -> bool {
        self.once || self.output.is_some()
    }

    /// Writes facts where and how the options say.
    ///
    /// # Errors
    /// When it can't be written. A reader that has seen enough is no error.
    pub fn write(&self, facts: &Facts) -> io::Result<()> {
        let text = self.text(facts);
        match self.output.as_deref().filter(|path| path.as_os_str() != "-") {
            Some(path) => std::fs::write(path, text),
            None => match io::stdout().lock().write_all(text.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                result => result,
            },
        }
    }

    fn text(&self, facts: &Facts) -> String {
        if self.pretty { terminal::json(facts) } else { terminal::json_line(facts) }
    }

    /// Reads the file, and lets the flags win.
    ///
    /// # Errors
    /// When the file can't be read or has another form.
    pub fn file(&self) -> Result<File, Error> {
        let path = self.config.clone().unwrap_or_else(default_file);
        let file = File::read(&path, self.config.is_some())?;
        Ok(file.overridden_by(File {
            interval: self.interval,
            bridge_url: self.server.clone(),
            log_file: self.log.clone(),
            state_dir: self.state_dir.clone(),
            include_processes: self.proc,
            include_network: self.net,
            verbose: self.verbose,
            host: self.host.clone(),
            token_file: self.token_file.clone(),
            ..File::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Item, Kind, Subject, Value};

    fn check(line: &str) -> Options {
        let words =
            std::iter::once("twin-agent").chain(line.split_whitespace()).map(OsString::from);
        Options::try_parse_from(modern(words)).unwrap()
    }

    #[test]
    fn old_flags() {
        let options = check(
            "-interval 5 -bridge http://x:1/api -log /l -state-dir /s -proc=false -net -verbose",
        );
        assert_eq!(options.interval, Some(5.0));
        assert_eq!(options.server.as_deref(), Some("http://x:1/api"));
        assert_eq!(options.log, Some("/l".into()));
        assert_eq!(options.state_dir, Some("/s".into()));
        assert_eq!(
            (options.proc, options.net, options.verbose),
            (Some(false), Some(true), Some(true))
        );
        let options = check("-output - -pretty");
        assert_eq!((options.output, options.pretty), (Some("-".into()), true));
    }

    #[test]
    fn facts_are_printable_and_whole() {
        let unit = Subject::escaped(Kind::UNIT, "a\u{202e}b.service");
        let fields = [("description".to_owned(), Value::from("x\u{9b}2J\u{2028}\u{200b}"))];
        let facts: Facts = [(unit, Item::new(&fields.into()))].into_iter().collect();
        for line in ["--once", "--once --json", "--once --pretty"] {
            let text = check(line).text(&facts);
            let is_plain = |c: char| c == '\n' || c.is_ascii_graphic() || c == ' ';
            assert!(text.ends_with("}\n") && text.chars().all(is_plain), "{text}");
            assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
        }
    }

    #[test]
    fn todays_flags() {
        let options = check("--once --json --server http://x -v");
        assert!(options.once && options.json);
        assert_eq!(options.verbose, Some(true));
    }
}
