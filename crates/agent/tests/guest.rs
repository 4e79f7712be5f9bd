//! The agent of a twin on a port that behaves as a virtio-serial port does: a terminal in raw
//! mode, with garbage in it from before.

use agent::config::File;
use api::guest::{Answer, Ask, ask};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufStream};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_twin_answers_and_outlives_garbage() {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&near).unwrap();
    unlockpt(&near).unwrap();
    let mut raw = tcgetattr(&near).unwrap();
    raw.make_raw();
    tcsetattr(&near, OptionalActions::Now, &raw).unwrap();
    let port = PathBuf::from(ptsname(&near, Vec::new()).unwrap().into_string().unwrap());

    let state = tempfile::tempdir().unwrap();
    let file = File { state_dir: Some(state.path().to_owned()), ..File::default() };
    let config = file.check().unwrap();
    let stop = CancellationToken::new();
    let (token, path) = (stop.clone(), port.clone());
    let guest = async move { agent::guest::serve(config, &path, token).await };
    let server = async {
        let file = tokio::fs::File::from_std(std::fs::File::from(near));
        let mut channel = BufStream::new(file);
        channel.write_all(b"\x00\xff{\"id\":").await.unwrap();
        let hello = ask(&mut channel, "1".to_owned(), Ask::Hello, DEADLINE).await.unwrap();
        assert_eq!(hello, Answer::Hello(env!("CARGO_PKG_VERSION").to_owned()));
        let facts = ask(&mut channel, "2".to_owned(), Ask::Facts, DEADLINE).await.unwrap();
        let Answer::Facts(facts) = facts else { unreachable!("facts were asked for") };
        assert!(facts.iter().any(|(subject, _)| subject.to_string() == "platform:host"));
        let health = ask(&mut channel, "3".to_owned(), Ask::Health, DEADLINE).await.unwrap();
        assert!(matches!(health, Answer::Health(_)), "{health:?}");
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(guest, server);
    ended.unwrap();
}
