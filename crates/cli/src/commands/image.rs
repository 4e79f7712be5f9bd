//! `twin image`: base images that machines start from.

use super::run::follow_to_end;
use crate::arguments::{ImageBuildArguments, ImageCommand};
use crate::failure::{Failure, is_here};
use crate::remote::Query;
use crate::session::{Session, note, write};
use crate::table::{Cell, Table};
use crate::view::{Paint, View, bytes};
use api::answer::{Image, Images, NewImage};
use api::run::Begun;
use model::terminal;

/// Digits of a digest that people read.
const DIGITS: usize = 12;

pub(crate) async fn run(command: &ImageCommand, session: &mut Session) -> Result<(), Failure> {
    match command {
        ImageCommand::List => {
            let images: Images = session.remote.get(&Query::of(&["images"])).await?;
            if images.images.is_empty() {
                note("no images yet; make one with: twin image build debian");
            }
            session.answer(&images, table)
        }
        ImageCommand::Show { image } => {
            let image: Image = session.remote.get(&Query::of(&["images", image])).await?;
            session.answer(&image, glance)
        }
        ImageCommand::Delete { image } => {
            session.remote.delete(&Query::of(&["images", image])).await?;
            note(&format!("deleted {image}"));
            Ok(())
        }
        ImageCommand::Build(arguments) => build(arguments, session).await,
    }
}

async fn build(arguments: &ImageBuildArguments, session: &mut Session) -> Result<(), Failure> {
    let asked = NewImage {
        name: arguments.name.clone(),
        suite: arguments.suite.clone(),
        mirror: arguments.mirror.clone(),
        packages: arguments.package.clone(),
        from: arguments.from.as_deref().map(|from| whole(from, session.remote.url())),
        checksum: arguments.checksum.clone(),
    };
    let begun: Begun = session.remote.post(&Query::of(&["images"]), &asked).await?;
    let id = begun.run;
    if arguments.detach {
        let text = format!("{id}\n");
        return write(&if session.json { terminal::json(&begun) } else { text });
    }
    note(&format!("run {id}; it goes on without this command: twin run logs -f {id}"));
    follow_to_end(id, 0, session).await
}

/// The server reads the file: a path of this machine is made whole where it is the same one.
fn whole(from: &str, server: &str) -> String {
    let path = std::path::Path::new(from);
    if from.contains("://") || path.is_absolute() || !is_here(server) {
        return from.to_owned();
    }
    std::path::absolute(path)
        .map_or_else(|_unknown| from.to_owned(), |path| path.to_string_lossy().into_owned())
}

fn table(answer: &Images, view: &View) -> String {
    if answer.images.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(view, &["IMAGE", "NAMES", "FROM", "CREATED", "DISK", "USED", "STATE"]);
    for image in &answer.images {
        let digits: String = image.id.chars().take(DIGITS).collect();
        table.row([
            Cell::painted(digits, Paint::Bold),
            Cell::from(image.names.join(", ")),
            Cell::from(image.origin.as_deref().unwrap_or("-")),
            Cell::from(
                image.created_at.map_or_else(|| "-".into(), |at| view.age(at.min(view.now))),
            ),
            Cell::number(image.disk_bytes.map_or_else(|| "-".into(), bytes)),
            Cell::number(bytes(image.used_bytes)),
            match &image.damage {
                None => Cell::from("sound"),
                Some(damage) => Cell::painted(damage.as_str(), Paint::Red),
            },
        ]);
    }
    table.render("")
}

fn glance(image: &Image, view: &View) -> String {
    let mut table = Table::new(view, &[]);
    let rows = [
        ("image", Some(image.id.clone())),
        ("names", Some(image.names.join(", "))),
        ("from", image.origin.clone()),
        ("created", image.created_at.map(|at| view.time(at))),
        ("architecture", image.architecture.clone()),
        ("disk", image.disk_bytes.map(bytes)),
        ("used", Some(bytes(image.used_bytes))),
        ("packages", (!image.packages.is_empty()).then(|| image.packages.len().to_string())),
        ("damage", image.damage.clone()),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            table.row([Cell::painted(name, Paint::Dim), Cell::from(value)]);
        }
    }
    let mut packages = Table::new(view, &[]);
    for (name, version) in &image.packages {
        packages.row([Cell::from(name.as_str()), Cell::from(version.as_str())]);
    }
    table.render("") + &packages.render("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::at;
    use expect_test::expect;

    fn example() -> Image {
        Image {
            id: "0123456789abcdef".repeat(4),
            names: vec!["debian".into()],
            created_at: Some(at(0)),
            architecture: Some("amd64".into()),
            origin: Some("bookworm".into()),
            disk_bytes: Some(8 << 30),
            used_bytes: 700 << 20,
            packages: [("bash".to_owned(), "5.2.15".to_owned())].into(),
            damage: None,
        }
    }

    #[test]
    fn a_table_of_images() {
        let damaged = Image {
            damage: Some("its manifest\ncan't be read".into()),
            created_at: None,
            ..example()
        };
        expect![[r#"
            IMAGE         NAMES   FROM      CREATED     DISK     USED     STATE
            0123456789ab  debian  bookworm  15 min ago  8.0 GiB  700 MiB  sound
            0123456789ab  debian  bookworm  -           8.0 GiB  700 MiB  its manifest\ncan't be read
        "#]]
        .assert_eq(&table(&Images { images: vec![example(), damaged] }, &View::of_tests()));
    }

    #[test]
    fn one_image() {
        expect![[r#"
            image         0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
            names         debian
            from          bookworm
            created       2026-11-20T09:00:00Z
            architecture  amd64
            disk          8.0 GiB
            used          700 MiB
            packages      1
              bash  5.2.15
        "#]]
        .assert_eq(&glance(&example(), &View::of_tests()));
    }

    #[test]
    fn paths_are_made_whole_only_for_this_machine() {
        let here = "http://127.0.0.1:8470";
        assert!(whole("disk.img", here).starts_with('/'));
        assert_eq!(whole("disk.img", "http://elsewhere:8470"), "disk.img");
        assert_eq!(whole("/a/disk.img", here), "/a/disk.img");
        assert_eq!(whole("https://example.org/x", here), "https://example.org/x");
    }
}
