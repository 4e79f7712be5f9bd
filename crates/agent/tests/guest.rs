//! The agent of a twin on a port that behaves as a virtio-serial port does: a terminal in raw
//! mode, with garbage in it from before.

use agent::config::File;
use api::guest::{Answer, Ask, Entropy, Look, Progress, Renew, Standing, ask};
use model::spec::FilePath;
use model::{ContentId, Identity, Time, entity};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufStream};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

type Channel = BufStream<tokio::fs::File>;

/// The server's end of a terminal in raw mode, and where the guest's is.
fn terminal() -> std::io::Result<(OwnedFd, PathBuf)> {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&near)?;
    unlockpt(&near)?;
    let mut raw = tcgetattr(&near)?;
    raw.make_raw();
    tcsetattr(&near, OptionalActions::Now, &raw)?;
    let far = ptsname(&near, Vec::new())?;
    Ok((near, OsStr::from_bytes(far.as_bytes()).into()))
}

/// Lets an agent answer for the machine below `root` while a server talks to it.
async fn converse<F: Future<Output = ()>>(root: &Path, server: impl FnOnce(Channel) -> F) {
    let (near, port) = terminal().expect("there are terminals");
    let state = tempfile::tempdir().expect("there is room");
    let file = File { state_dir: Some(state.path().to_owned()), ..File::default() };
    let config = file.check().expect("a state directory is all it needs");
    let stop = CancellationToken::new();
    let guest = agent::guest::serve(config, root, &port, stop.clone());
    let channel = BufStream::new(tokio::fs::File::from_std(fs::File::from(near)));
    let talk = async {
        server(channel).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(guest, talk);
    ended.expect("it ends in order");
}

#[tokio::test]
async fn a_twin_answers_and_outlives_garbage() {
    converse(Path::new("/"), |mut channel| async move {
        channel.write_all(b"\x00\xff{\"id\":").await.unwrap();
        let hello = ask(&mut channel, "1".to_owned(), Ask::Hello, DEADLINE).await.unwrap();
        assert_eq!(hello, Answer::Hello(env!("CARGO_PKG_VERSION").to_owned()));
        let facts = ask(&mut channel, "2".to_owned(), Ask::Facts, DEADLINE).await.unwrap();
        let Answer::Facts(facts) = facts else { unreachable!("facts were asked for") };
        assert!(facts.iter().any(|(subject, _)| subject.to_string() == "platform:host"));
        let health = ask(&mut channel, "3".to_owned(), Ask::Health, DEADLINE).await.unwrap();
        assert!(matches!(health, Answer::Health(_)), "{health:?}");
        let standing = standing(&mut channel).await;
        assert_eq!((standing.progress, standing.host_keys), (Progress::Unasked, None));
    })
    .await;
}

#[tokio::test]
async fn what_the_server_knows_is_told_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.conf");
    let text = "password=hunter2\n";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let path: FilePath = path.to_str().unwrap().parse().unwrap();
    let id = |text: &str| ContentId::of(text.as_bytes());
    converse(Path::new("/"), |mut channel| async move {
        let mut look = async |plain: BTreeMap<FilePath, ContentId>| {
            let look = Ask::Look(Look { files: vec![path.clone()], plain });
            match ask(&mut channel, "1".to_owned(), look, DEADLINE).await.unwrap() {
                Answer::Facts(facts) => facts.entity::<entity::File>(path.as_str()).unwrap(),
                other => unreachable!("facts were asked for: {other:?}"),
            }
        };
        for plain in [None, Some(id("password=other\n"))] {
            let seen = look(plain.map(|id| (path.clone(), id)).into_iter().collect()).await;
            assert!(seen.redacted && seen.content != Some(id(text).to_string()), "{seen:?}");
        }
        let seen = look([(path.clone(), id(text))].into()).await;
        assert_eq!((seen.redacted, seen.content), (false, Some(id(text).to_string())));
    })
    .await;
}

async fn standing(channel: &mut Channel) -> Standing {
    match ask(channel, "identity".to_owned(), Ask::Identity, DEADLINE).await {
        Ok(Answer::Identity(standing)) => standing,
        other => unreachable!("the identity was asked for: {other:?}"),
    }
}

async fn settled(channel: &mut Channel) -> Standing {
    let settled = async {
        loop {
            let standing = standing(channel).await;
            if standing.progress != Progress::Pending {
                return standing;
            }
            let keys = standing.host_keys.unwrap_or_default();
            assert!(keys.iter().all(|key| key.contains("root@web02")), "{keys:?}");
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.expect("it settles")
}

#[tokio::test]
async fn a_clone_becomes_itself() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("etc/ssh")).unwrap();
    fs::write(at("etc/ssh/sshd_config"), "").unwrap();
    fs::write(at("etc/hostname"), "web01\n").unwrap();
    let identity: Identity = Identity {
        hostname: "web02".parse().unwrap(),
        machine_id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        mac: None,
    };
    let renew = Renew {
        now: Time::from_seconds(0),
        entropy: Entropy::new(vec![7; 32]).unwrap(),
        identity: None,
    };
    converse(root.path(), |mut channel| async move {
        let revert = Ask::Renew(renew.clone());
        let answer = ask(&mut channel, "1".to_owned(), revert, DEADLINE).await.unwrap();
        assert!(matches!(answer, Answer::Renewed(done) if done.faults.is_empty()));
        let same = standing(&mut channel).await;
        assert_eq!((same.progress, same.hostname.as_deref()), (Progress::Unasked, Some("web01")));

        let clone = || Ask::Renew(Renew { identity: Some(identity.clone()), ..renew.clone() });
        let answer = ask(&mut channel, "2".to_owned(), clone(), DEADLINE).await.unwrap();
        assert!(matches!(answer, Answer::Renewed(done) if done.faults.is_empty()));
        let first = settled(&mut channel).await;
        assert_eq!(first.progress, Progress::Done);
        assert_eq!(first.hostname.as_deref(), Some("web02"));
        assert_eq!(first.machine_id.as_deref(), Some(identity.machine_id.as_str()));
        assert_eq!(first.faults, []);
        let keys = first.host_keys.unwrap();
        assert!(keys.len() == 1 && keys[0].starts_with("ssh-ed25519 "), "{keys:?}");

        // Asked again in the middle of it: the keys told are those that stay.
        for id in ["3", "4"] {
            let answer = ask(&mut channel, id.to_owned(), clone(), DEADLINE).await.unwrap();
            assert!(matches!(answer, Answer::Renewed(_)));
        }
        let again = settled(&mut channel).await.host_keys.unwrap();
        assert_ne!(again, keys);
        let public = fs::read_to_string(at("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
        assert_eq!(again, [public.trim()]);
    })
    .await;
}

#[tokio::test]
async fn what_fails_is_told_and_holds_up_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    // A directory in the place of a file can't be replaced by one.
    fs::create_dir_all(at("etc/machine-id")).unwrap();
    let identity = Identity {
        hostname: "web02".parse().unwrap(),
        machine_id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        mac: Some("52:54:00:12:34:56".parse().unwrap()),
    };
    let entropy = Entropy::new(vec![7; 32]).unwrap();
    let renew = Renew { now: Time::from_seconds(0), entropy, identity: Some(identity) };
    converse(root.path(), |mut channel| async move {
        let answer = ask(&mut channel, "1".to_owned(), Ask::Renew(renew), DEADLINE).await;
        let Ok(Answer::Renewed(done)) = answer else { unreachable!("{answer:?}") };
        let parts = |faults: &[api::guest::Fault]| -> Vec<String> {
            faults.iter().map(|fault| fault.part.clone()).collect()
        };
        assert_eq!(parts(&done.faults), ["machine_id"]);
        assert!(done.faults[0].what.contains("etc/machine-id: "), "{done:?}");
        let standing = settled(&mut channel).await;
        assert_eq!(parts(&standing.faults), ["network"]);
        assert_eq!(standing.hostname.as_deref(), Some("web02"));
        assert_eq!(standing.host_keys.as_deref(), Some(&[][..]));
    })
    .await;
}
