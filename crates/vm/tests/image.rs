//! Base images as their users meet them: good ones, damaged ones, hostile ones, and work that
//! is cut off. qemu-img is the real one.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of a test"
)]

use model::Time;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vm::image::{Boot, Builder, Error, Image, Import, Job, Progress, Seed, Store};

struct Lab {
    directory: TempDir,
    store: Store,
    cancel: CancellationToken,
    seen: Arc<Mutex<Vec<Progress>>>,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        Self { directory, store, cancel: CancellationToken::new(), seen: Arc::default() }
    }

    fn job(&self, seconds: u64) -> Job {
        let seen = self.seen.clone();
        let sink = Arc::new(move |progress| seen.lock().unwrap().push(progress));
        Job::new(sink, self.cancel.clone(), Instant::now() + Duration::from_secs(seconds))
    }

    /// A disk with a file system on it, as qcow2 or raw, under a name that says nothing.
    fn disk(&self, name: &str, format: &str) -> PathBuf {
        let raw = self.directory.path().join(format!("{name}.tmp"));
        fs::File::create(&raw).unwrap().set_len(16 << 20).unwrap();
        run("mke2fs", &["-q", "-F", "-t", "ext4", text(&raw)]);
        let path = self.directory.path().join(name);
        run("qemu-img", &["convert", "-f", "raw", "-O", format, text(&raw), text(&path)]);
        path
    }

    async fn import(&self, source: &str, checksum: Option<&str>) -> Result<Image, Error> {
        let import = Import {
            name: "cloud".parse().unwrap(),
            source: source.parse().unwrap(),
            checksum: checksum.map(|checksum| checksum.parse().unwrap()),
        };
        import.run(&self.store, &self.job(60), Time(1)).await
    }

    async fn refused(&self, source: &Path, wanted: &str) {
        let error = self.import(text(source), None).await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error} does not say {wanted:?}");
        assert_eq!(self.entries(), [".lock"], "something half-made is left");
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.store.directory()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn an_image_is_taken_whatever_its_name_says() {
    let lab = Lab::new();
    for (name, format) in [("disk.raw", "qcow2"), ("disk.qcow2", "raw")] {
        let image = lab.import(text(&lab.disk(name, format)), None).await.unwrap();
        assert_eq!(image.manifest.boot, Boot::Firmware);
        assert_eq!(image.manifest.virtual_size_bytes, 16 << 20);
        run("qemu-img", &["check", "-q", "-f", "qcow2", text(&image.disk)]);
        let again = lab.import(text(&lab.directory.path().join(name)), None).await.unwrap();
        assert_eq!(again.manifest.digest, image.manifest.digest);
    }
    assert_eq!(lab.store.list().unwrap().len(), 2);
    assert!(
        lab.seen.lock().unwrap().iter().any(|progress| matches!(progress, Progress::Bytes { .. }))
    );
}

#[tokio::test]
async fn images_that_reach_for_other_files_are_refused() {
    let lab = Lab::new();
    let (base, path) = (lab.disk("base", "qcow2"), lab.directory.path().join("evil"));
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", text(&base), "-F", "qcow2", text(&path)],
    );
    lab.refused(&path, "backing file").await;
    let data = format!("data_file={}", text(&lab.directory.path().join("data")));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data, text(&path), "1M"]);
    lab.refused(&path, "data file").await;
}

#[tokio::test]
async fn what_is_cut_off_or_no_image_is_refused() {
    let lab = Lab::new();
    let whole = fs::read(lab.disk("whole", "qcow2")).unwrap();
    let path = lab.directory.path().join("part");
    for length in [0, 3, 100, whole.len() / 2, whole.len() - 65536] {
        fs::write(&path, &whole[..length]).unwrap();
        lab.refused(&path, "not a usable disk image").await;
    }
    for (content, wanted) in [("hello", "neither"), ("<html>", "right address"), ("KDMV", "VMDK")] {
        fs::write(&path, content).unwrap();
        lab.refused(&path, wanted).await;
    }
    lab.refused(Path::new("/dev/null"), "regular file").await;
    lab.refused(Path::new("/no/such/file"), "/no/such/file").await;
}

/// Answers the requests of a test, one connection each.
fn serve(answers: Vec<(&'static str, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (head, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /"));
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    address
}

fn head(length: usize) -> &'static str {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").leak()
}

#[tokio::test]
async fn an_image_is_fetched_and_checked() {
    let lab = Lab::new();
    let path = lab.disk("disk", "qcow2");
    let disk = fs::read(&path).unwrap();
    let sum = Command::new("sha256sum").arg(&path).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let moved =
        "HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let url = serve(vec![(moved, Vec::new()), (head(disk.len()), disk.clone())]);
    let image = lab.import(&format!("{url}/disk?token=secret"), Some(&sum)).await.unwrap();
    let manifest = fs::read_to_string(image.disk.with_file_name("manifest.json")).unwrap();
    assert!(manifest.contains(&format!("{url}/disk")) && !manifest.contains("secret"));
    let local = lab.import(&format!("file://{}", text(&path)), Some(&sum)).await.unwrap();
    assert_eq!(local.manifest.digest, image.manifest.digest);
}

#[tokio::test]
async fn what_was_not_fetched_whole_is_refused() {
    let lab = Lab::new();
    let disk = fs::read(lab.disk("disk", "qcow2")).unwrap();
    let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let file = "HTTP/1.1 302 Found\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n";
    for (answer, wanted) in [
        ((missing, Vec::new()), "404"),
        ((head(disk.len()), disk[..disk.len() / 2].to_vec()), "could not fetch"),
        ((file, Vec::new()), "redirect"),
    ] {
        let url = serve(vec![answer]);
        lab.refused(Path::new(&format!("{url}/disk")), wanted).await;
    }
    let url = serve(vec![(head(disk.len()), disk)]);
    let error = lab.import(&format!("{url}/x"), Some(&"0".repeat(64))).await.unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    assert_eq!(lab.entries(), [".lock"]);
    lab.refused(Path::new("http://127.0.0.1:1/x"), "could not connect").await;
}

#[tokio::test]
async fn a_damaged_image_is_not_handed_out() {
    let lab = Lab::new();
    let image = lab.import(text(&lab.disk("disk", "raw")), None).await.unwrap();
    let id = image.manifest.digest.clone();
    let whole = fs::read(&image.disk).unwrap();
    fs::set_permissions(&image.disk, fs::Permissions::from_mode(0o644)).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (content, wanted) in [(&flipped[..], "content"), (&whole[..whole.len() - 1], "bytes")] {
        fs::write(&image.disk, content).unwrap();
        let error = lab.store.acquire(&id, &lab.job(60)).unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains(wanted), "{error}");
    }
    fs::write(&image.disk, &whole).unwrap();
    lab.store.acquire(&id, &lab.job(60)).unwrap();
    let manifest = image.disk.with_file_name("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for other in [text.replace("16777216", "16777728"), text[..50].to_owned(), String::new()] {
        fs::write(&manifest, other).unwrap();
        assert!(matches!(lab.store.acquire(&id, &lab.job(60)), Err(Error::Damaged { .. })));
        assert!(lab.store.list().unwrap()[0].manifest.is_err());
    }
    lab.store.delete(&id, &BTreeMap::new()).unwrap();
    assert_eq!(lab.entries(), [".lock"]);
}

#[tokio::test]
async fn images_are_found_and_deleted() {
    let lab = Lab::new();
    let id = lab.import(text(&lab.disk("a", "raw")), None).await.unwrap().manifest.digest;
    assert_eq!(lab.store.find("cloud").unwrap(), id);
    assert_eq!(lab.store.find(&id.as_str()[..8]).unwrap(), id);
    for text in ["", "other", "../x", &id.as_str()[..3], "000000"] {
        assert!(matches!(lab.store.find(text), Err(Error::Unknown { .. })), "{text:?}");
    }
    let users = BTreeMap::from([(id.clone(), vec!["web01".to_owned()])]);
    let error = lab.store.delete(&id, &users).unwrap_err();
    assert!(error.to_string().contains("web01"), "{error}");
    lab.store.delete(&id, &BTreeMap::new()).unwrap();
    assert!(matches!(lab.store.delete(&id, &BTreeMap::new()), Err(Error::Unknown { .. })));
}

/// Half-made images go at the next open, unless somebody works on them.
#[tokio::test]
async fn half_made_images_go() {
    let lab = Lab::new();
    let left = lab.store.directory().join(".partial-left");
    fs::create_dir_all(left.join("work/tree")).unwrap();
    let stalled = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http://{}/x", stalled.local_addr().unwrap());
    let (fetch, cancel) = (lab.import(&source, None), lab.cancel.clone());
    let sweep = async {
        while lab.entries().len() < 3 {
            tokio::task::yield_now().await;
        }
        Store::open(lab.store.directory()).unwrap();
        assert!(!left.exists());
        assert_eq!(lab.entries().len(), 2, "a draft at work was swept away");
        cancel.cancel();
    };
    let (fetched, ()) = tokio::join!(fetch, sweep);
    assert!(matches!(fetched, Err(Error::Job(vm::job::Error::Cancelled))));
    assert_eq!(lab.entries(), [".lock"]);
}

/// A build that is cancelled while packages are installed leaves nothing: no file, no mount.
#[tokio::test]
async fn a_cancelled_build_leaves_nothing() {
    let lab = Lab::new();
    let builder = Builder { size_bytes: 2 << 30, ..Builder::new("base".parse().unwrap()) };
    let cancel = lab.cancel.clone();
    let sink = move |progress| match progress {
        Progress::Line(line) if line.contains("apt-get update") => cancel.cancel(),
        _ => {}
    };
    let deadline = Instant::now() + Duration::from_secs(300);
    let job = Job::new(Arc::new(sink), lab.cancel.clone(), deadline);
    let built = builder.build(&lab.store, &job, Time(1)).await;
    assert!(matches!(built, Err(Error::Job(vm::job::Error::Cancelled))), "{built:?}");
    assert_eq!(lab.entries(), [".lock"]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(text(lab.store.directory())));
}

#[tokio::test]
async fn a_late_build_says_where_it_was() {
    let lab = Lab::new();
    let builder = Builder::new("base".parse().unwrap());
    let error = builder.build(&lab.store, &lab.job(0), Time(1)).await.unwrap_err();
    assert!(error.to_string().contains("Looking at what is needed"), "{error}");
}

/// Others read the seed as it is meant: blkid finds the label, isoinfo the files.
#[test]
fn a_seed_is_found_by_its_label() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("seed");
    let seed = Seed::new("web01-1".parse().unwrap(), "web01".parse().unwrap());
    fs::write(&path, seed.iso().unwrap()).unwrap();
    let probed = Command::new("/usr/sbin/blkid").args(["-p", "-o", "export", text(&path)]).output();
    let probed = String::from_utf8(probed.unwrap().stdout).unwrap();
    assert!(probed.contains("LABEL=cidata") && probed.contains("TYPE=iso9660"), "{probed}");
}
