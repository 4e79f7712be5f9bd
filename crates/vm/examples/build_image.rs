//! Builds a base image, or takes one from a file or URL, and prints where it lies. What a
//! server does as a run, for the lab and for trying things out.
//!
//! usage: build_image [--agent PROGRAM] [--package NAME]… [--from SOURCE] IMAGES_DIRECTORY NAME
//!        build_image [--agent PROGRAM] --seed PUBLIC_KEY_FILE ISO

use anyhow::{Context as _, bail};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;
use vm::image::seed::User;
use vm::image::{Builder, Import, Job, Progress, Seed, Store};

const DEADLINE: Duration = Duration::from_secs(30 * 60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "build_image: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut agent, mut from, mut plain) = (None, None, Vec::new());
    let mut packages = BTreeSet::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--agent" => agent = arguments.next(),
            "--from" => from = arguments.next(),
            "--package" => {
                let name = arguments.next().context("--package needs a name")?;
                packages.insert(name.parse()?);
            }
            "--seed" => {
                let key = arguments.next().context("--seed needs a public key's file")?;
                let iso = arguments.next().context("--seed needs a file to write")?;
                return write_seed(Path::new(&key), agent.as_deref(), Path::new(&iso));
            }
            _ => plain.push(argument),
        }
    }
    let [directory, name] = plain.as_slice() else { bail!("needs a directory and a name") };
    let cancel = CancellationToken::new();
    let job = Job::new(Arc::new(tell), cancel.clone(), tokio::time::Instant::now() + DEADLINE);
    let store = Store::open(Path::new(directory))?;
    #[expect(clippy::disallowed_methods, reason = "the only clock of this program")]
    let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH)?;
    let now = model::Time(i64::try_from(since.as_micros())?);
    let work = async {
        match from {
            Some(source) => {
                let import =
                    Import { name: name.parse()?, source: source.parse()?, checksum: None };
                anyhow::Ok(import.run(&store, &job, now).await?)
            }
            None => {
                let agent = agent.map(Into::into);
                let builder = Builder { agent, packages, ..Builder::new(name.parse()?) };
                Ok(builder.build(&store, &job, now).await?)
            }
        }
    };
    tokio::pin!(work);
    let image = tokio::select! {
        image = &mut work => image?,
        stopped = tokio::signal::ctrl_c() => {
            stopped?;
            cancel.cancel();
            work.await?
        }
    };
    let directory = image.disk.parent().context("a disk lies in a directory")?;
    writeln!(std::io::stdout(), "{}", directory.display())?;
    Ok(())
}

fn tell(progress: Progress) {
    let text = match progress {
        Progress::Step(step) => format!("== {step}"),
        Progress::Line(line) => format!("   {line}"),
        Progress::Bytes { done, total } => format!("   {done} of {total:?} bytes"),
    };
    // Nobody reads it any more: the work goes on all the same.
    drop(writeln!(std::io::stderr(), "{text}"));
}

fn write_seed(key: &Path, agent: Option<&str>, iso: &Path) -> anyhow::Result<()> {
    let key = std::fs::read_to_string(key)?;
    let mut seed = Seed::new("lab-1".parse()?, "lab".parse()?);
    seed.agent = agent.map(std::fs::read).transpose()?;
    let keys = vec![key.trim().parse()?];
    seed.users.push(User { name: "twin".parse()?, keys, password: None, administrator: true });
    std::fs::write(iso, seed.iso()?)?;
    Ok(())
}
