use super::kept::tests::part;
use super::*;
use crate::runs::{Cause, Failure, Kind, Limits, New, Runs};
use model::container_image::Part;
use std::collections::BTreeSet;
use tempfile::TempDir;

/// For tests that wait for the end of these. What comes does so sooner.
const AT_ONCE: Waits = Waits {
    silence: Duration::from_secs(2),
    coming: Duration::from_millis(200),
    again: Again { first: Duration::from_millis(100), longest: Duration::from_millis(200) },
};

/// An image of some texts, as an agent has it.
struct Made {
    id: BlobDigest,
    texts: Vec<String>,
    parts: Parts,
}

fn image(name: &str, layers: &[&str]) -> Made {
    let config = serde_json::json!({"rootfs": {"diff_ids": vec![name; layers.len()]}}).to_string();
    let parts: Vec<Part> = layers.iter().map(|text| part(text)).collect();
    let parts = Parts::new(part(&config), parts).unwrap();
    let texts = layers.iter().map(|&text| text.to_owned()).chain([config]);
    let texts = texts.collect::<BTreeSet<_>>().into_iter().collect();
    Made { id: part(name).digest, texts, parts }
}

struct Bench {
    _root: TempDir,
    _runs: Runs,
    handle: Handle,
    images: ContainerImages,
    host: HostId,
    name: Image,
}

impl Bench {
    async fn new(bytes_max: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let runs = Runs::open(&root.path().join("runs"), Limits::default()).unwrap();
        let (tell, told) = oneshot::channel();
        let new =
            New { kind: Kind::Apply, subject: "twin:web01".parse().unwrap(), cause: Cause::Local };
        let work = async move |handle: Handle| {
            tell.send(handle.clone()).unwrap();
            handle.cancelled().cancelled().await;
            Ok::<(), Failure>(())
        };
        runs.start(new, work).unwrap();
        let images = ContainerImages::with(root.path().join("images"), bytes_max, AT_ONCE);
        let (host, name) = (HostId::new("web01").unwrap(), "lab/x:1".parse().unwrap());
        let handle = told.await.unwrap();
        Self { _root: root, _runs: runs, handle, images, host, name }
    }

    async fn fetch(&self) -> Result<Held, Missing> {
        self.images.fetch(&self.host, &self.name, None, &self.handle).await
    }

    /// The number of the task that the agent is given.
    async fn asked(&self) -> u64 {
        self.images.came(&self.host);
        let tasks = self.images.attend(&self.host).await;
        assert_eq!((tasks.len(), &tasks[0].image), (1, &self.name));
        tasks[0].id
    }

    async fn news(&self, task: u64, news: ImageNews) -> Result<ImageAnswer, Error> {
        self.images.news(&self.host, task, news).await
    }

    async fn piece(&self, task: u64, text: &str, (from, to): (usize, usize)) -> Result<(), Error> {
        let bytes = Bytes::copy_from_slice(&text.as_bytes()[from..to]);
        let from = from.try_into().unwrap();
        self.images.piece(&self.host, task, (part(text).digest, from, bytes)).await
    }

    /// Hands out what is wanted, in pieces of three bytes; the texts that were.
    async fn hand_out(&self, image: &Made) -> Result<Vec<String>, Error> {
        let task = self.asked().await;
        let found = self.news(task, ImageNews::Found { id: image.id.clone() }).await?;
        if found == ImageAnswer::Had {
            return Ok(Vec::new());
        }
        assert_eq!(found, ImageAnswer::List);
        let listed = self.news(task, ImageNews::Listed { parts: image.parts.clone() }).await?;
        let ImageAnswer::Send { digests: wanted } = listed else { panic!("{listed:?}") };
        let is_wanted = |text: &&String| wanted.contains(&part(text).digest);
        let wanted: Vec<String> = image.texts.iter().filter(is_wanted).cloned().collect();
        for text in &wanted {
            assert_eq!(self.news(task, ImageNews::Working).await?, ImageAnswer::GoOn);
            for from in (0..text.len()).step_by(3) {
                self.piece(task, text, (from, text.len().min(from + 3))).await?;
            }
        }
        self.news(task, ImageNews::Sent).await?;
        Ok(wanted)
    }
}

fn lacking(fetched: Result<Held, Missing>) -> String {
    match fetched {
        Err(Missing::Lacking(lack)) => lack.what,
        other => panic!("{other:?}"),
    }
}

fn broken(fetched: Result<Held, Missing>) -> String {
    match fetched {
        Err(Missing::Broken(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_here_does_not_come_again() {
    let bench = Bench::new(1 << 20).await;
    let first = image("first", &["base", "web", "base"]);
    let (held, sent) = tokio::join!(bench.fetch(), bench.hand_out(&first));
    assert_eq!(held.unwrap().parts(), &first.parts);
    assert_eq!(sent.unwrap().len(), 3, "each once");
    let (held, sent) = tokio::join!(bench.fetch(), bench.hand_out(&first));
    assert_eq!(held.unwrap().id(), &first.id);
    assert!(sent.unwrap().is_empty());
    let second = image("second", &["base", "app"]);
    let (held, sent) = tokio::join!(bench.fetch(), bench.hand_out(&second));
    held.unwrap();
    let sent = sent.unwrap();
    assert!(sent.len() == 2 && !sent.contains(&"base".to_owned()), "{sent:?}");
}

#[tokio::test]
async fn who_sends_what_nobody_asked_for_is_refused() {
    let bench = Bench::new(1 << 20).await;
    let image = image("image", &["layer"]);
    // Wrong, and what is said to who waits.
    let check = async |wrong: &str, expected: &str| {
        let agent = async {
            let task = bench.asked().await;
            let other = HostId::new("other").unwrap();
            let foreign = bench.images.news(&other, task, ImageNews::Working).await;
            assert!(matches!(foreign, Err(Error::Unwanted)), "another host's task");
            let found = ImageNews::Found { id: image.id.clone() };
            if wrong == "early" {
                return bench.piece(task, "layer", (0, 5)).await;
            }
            bench.news(task, found).await?;
            bench.news(task, ImageNews::Listed { parts: image.parts.clone() }).await?;
            bench.piece(task, "layer", (0, 2)).await?;
            match wrong {
                "gap" => bench.piece(task, "layer", (3, 5)).await,
                "again" => bench.piece(task, "layer", (0, 2)).await,
                "unknown" => bench.piece(task, "another", (0, 7)).await,
                "unfinished" => bench.news(task, ImageNews::Sent).await.map(drop),
                "damaged" => {
                    let bytes = Bytes::from_static(b"eyr");
                    let piece = (part("layer").digest, 2, bytes);
                    bench.images.piece(&bench.host, task, piece).await
                }
                _ => {
                    let bytes = Bytes::from_static(b"more than it has");
                    let piece = (part("layer").digest, 2, bytes);
                    bench.images.piece(&bench.host, task, piece).await
                }
            }
        };
        let (fetched, told) = tokio::join!(bench.fetch(), agent);
        assert!(broken(fetched).contains(expected), "{wrong}");
        assert!(told.unwrap_err().to_string().contains(expected), "{wrong}");
    };
    for wrong in ["early", "gap", "again", "unknown", "unfinished"] {
        check(wrong, "not asked for, or is not the piece").await;
    }
    check("damaged", "is not what its digest says").await;
    check("more", "is not what its digest says").await;
    // And after all that it comes.
    let (held, sent) = tokio::join!(bench.fetch(), bench.hand_out(&image));
    held.unwrap();
    assert_eq!(sent.unwrap().len(), 2);
}

#[tokio::test]
async fn why_it_does_not_come_is_remembered() {
    let bench = Bench::new(60).await;
    let large = image("large", &["x".repeat(40).as_str()]);
    let (fetched, told) = tokio::join!(bench.fetch(), bench.hand_out(&large));
    assert!(matches!(told, Err(Error::TooLarge { .. })));
    assert!(lacking(fetched).contains("larger than this server takes"));
    let known = bench.images.lacking(&bench.host);
    assert!(known[&bench.name].remedy.contains("container_images_gb"));
    assert!(bench.images.lacking(&HostId::new("other").unwrap()).is_empty());
    let unable = async |why| {
        let task = bench.asked().await;
        let said = "so\u{1b}[1m".to_owned();
        bench.news(task, ImageNews::Unable { why, said }).await.unwrap();
    };
    let (fetched, ()) = tokio::join!(bench.fetch(), unable(WhyNot::Gone));
    assert_eq!(
        lacking(fetched),
        "its image does not come from the host: its engine does not have it any more (so[1m)"
    );
    let (fetched, ()) = tokio::join!(bench.fetch(), unable(WhyNot::Broken));
    assert_eq!(broken(fetched), "so[1m");
    let small = image("small", &["x"]);
    let (held, _) = tokio::join!(bench.fetch(), bench.hand_out(&small));
    held.unwrap();
    assert!(bench.images.lacking(&bench.host).is_empty());
}

#[tokio::test]
async fn it_is_asked_for_again_after_a_while_unless_there_was_nobody_to_ask() {
    let bench = Bench::new(1 << 20).await;
    let begin = Instant::now();
    assert!(lacking(bench.fetch().await).contains("hands out none"));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    tokio::time::sleep(AT_ONCE.again.longest).await;
    assert!(!bench.images.pardon(&bench.host), "nobody was there");
    assert!(bench.images.came(&bench.host), "it was waited for");
    assert!(bench.images.lacking(&bench.host).is_empty());
    assert!(!bench.images.came(&bench.host));
    let gone = async {
        let task = bench.asked().await;
        let news = ImageNews::Unable { why: WhyNot::Gone, said: String::new() };
        bench.news(task, news).await.unwrap();
    };
    let (fetched, ()) = tokio::join!(bench.fetch(), gone);
    fetched.unwrap_err();
    tokio::time::sleep(AT_ONCE.again.longest).await;
    assert!(bench.images.pardon(&bench.host));
    assert!(!bench.images.pardon(&bench.host), "once");
    assert!(bench.images.lacking(&bench.host).is_empty());
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    let bench = Bench::new(1 << 20).await;
    // It takes the task, and says nothing more.
    let (fetched, task) = tokio::join!(bench.fetch(), bench.asked());
    assert!(broken(fetched).contains("has said nothing"));
    let late = bench.news(task, ImageNews::Working).await;
    assert!(matches!(late, Err(Error::Unwanted)));
    // Who waited went away.
    let waits = timeout(Duration::from_millis(100), bench.fetch());
    let (waited, task) = tokio::join!(waits, bench.asked());
    assert!(waited.is_err());
    let late = bench.news(task, ImageNews::Working).await;
    assert!(matches!(late, Err(Error::Unwanted)));
}
