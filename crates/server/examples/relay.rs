//! Opens a way for packages into a machine, as the server does it for a twin that reaches nothing.
//!
//! ```text
//! cargo run -p server --example relay -- NAME PORT LOGIN KNOWN_HOSTS KEPT REPOSITORY...
//! ```
//!
//! The machine is at PORT of 127.0.0.1, and shows a key that KNOWN_HOSTS has for NAME. Files of
//! the repositories are kept in the directory KEPT; with none named, they are those of this
//! machine's apt. The port of the machine's loopback goes out as a line; the way is there until the
//! standard input ends.

mod reach;

use server::twins::relay::{Relay, Repositories};
use std::io::{self, Read, Write};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [name, port, login, known_hosts, kept, named @ ..] = words.as_slice() else {
        return Err("usage: relay NAME PORT LOGIN KNOWN_HOSTS KEPT REPOSITORY...".into());
    };
    let reach = reach::of_words([name, port, login, known_hosts])?;
    let repositories = match named {
        [] => {
            Repositories::of_this_machine().await.map_err(|failure| failure.message().to_owned())?
        }
        named => Repositories::new(named.iter().map(|&address| address.to_owned())),
    };
    let lent = Relay::new(kept.into(), repositories).lend(&reach).await;
    let lent = lent.map_err(|failure| failure.message().to_owned())?;
    writeln!(io::stdout(), "{}", lent.port)?;
    let over = || io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(over).await??;
    Ok(())
}
