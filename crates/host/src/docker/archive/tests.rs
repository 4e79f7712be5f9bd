use super::*;
use proptest::prelude::*;

/// The head of an entry, with its sum.
fn head(name: &str, kind: u8, bytes: u64, target: &str) -> Vec<u8> {
    let mut head = vec![0; BLOCK];
    let mut put = |at: usize, text: &[u8]| head[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(124, format!("{bytes:011o}").as_bytes());
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    sealed(head)
}

fn sealed(mut head: Vec<u8>) -> Vec<u8> {
    head[148..156].copy_from_slice(b"        ");
    let sum: u64 = head.iter().map(|byte| u64::from(*byte)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    head
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn file(name: &str, text: &str) -> Vec<u8> {
    let head = head(name, b'0', length(text.as_bytes()), "");
    [head, padded(text.as_bytes().to_vec())].concat()
}

fn link(name: &str, target: &str) -> Vec<u8> {
    head(name, b'2', 0, target)
}

fn directory(name: &str) -> Vec<u8> {
    head(name, b'5', 0, "")
}

fn records(kind: u8, pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in pairs {
        let rest = format!(" {key}={value}\n");
        let whole = (1..4)
            .map(|digits| rest.len() + digits)
            .find(|n| n.to_string().len() + rest.len() == *n);
        text.push_str(&format!("{}{rest}", whole.unwrap()));
    }
    [head("records", kind, length(text.as_bytes()), ""), padded(text.into_bytes())].concat()
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn list(archive: &[u8], chunk: usize, limit: u64) -> Result<Contents, Fault> {
    let (mut reader, mut listing) = (Reader::new(limit), Listing::default());
    for mut input in archive.chunks(chunk) {
        while let Some(piece) = reader.next(&mut input)? {
            listing.take(piece)?;
        }
    }
    reader.finish()?;
    listing.finish()
}

/// Names of the parts of the image, or why it is none; however it comes in.
fn check(entries: &[Vec<u8>], expected: &str) {
    let archive = entries.concat();
    for chunk in [1, 7, BLOCK, archive.len().max(1)] {
        let shown = match list(&archive, chunk, 1 << 20) {
            Ok(contents) => {
                let layers = contents.parts.layers().len();
                let names: Vec<&str> = contents.files.keys().map(String::as_str).collect();
                format!("{layers} of {}", names.join(" "))
            }
            Err(fault) => fault.to_string(),
        };
        assert_eq!(shown, expected, "in chunks of {chunk}");
    }
}

fn manifest(text: &str) -> Vec<u8> {
    file("manifest.json", text)
}

#[test]
fn both_ways_in_which_engines_write_it() {
    // With a directory for each layer, one of which is there twice.
    check(
        &[
            directory("aa/"),
            file("aa/VERSION", "1.0"),
            file("aa/json", "{}"),
            file("aa/layer.tar", "layer"),
            directory("bb/"),
            link("bb/layer.tar", "../aa/layer.tar"),
            file("cc.json", "{}"),
            manifest(
                r#"[{"Config":"cc.json","RepoTags":null,"Layers":["aa/layer.tar","bb/layer.tar"]}]"#,
            ),
            end(),
        ],
        "2 of aa/layer.tar cc.json",
    );
    // Of blobs, with records, and garbage behind the end.
    let blob = format!("blobs/sha256/{}", "ab".repeat(32));
    check(
        &[
            records(b'g', &[("comment", "x")]),
            file("oci-layout", "{}"),
            records(b'x', &[("mtime", "1.5"), ("path", &blob)]),
            file("short", "layer"),
            file("config", "{}"),
            manifest(&format!(r#"[{{"Config":"config","Layers":["{blob}"]}}]"#)),
            end(),
            b"garbage".to_vec(),
        ],
        &format!("1 of {blob} config"),
    );
    // An image of nothing.
    let nothing = manifest(r#"[{"Config":"config","Layers":null}]"#);
    check(&[file("config", "{}"), nothing, end()], "0 of config");
}

#[test]
fn parts_have_the_digests_of_their_bytes() {
    let archive = [
        file("config", "{}"),
        file("layer", "abc"),
        manifest(r#"[{"Config":"config","Layers":["layer"]}]"#),
        end(),
    ];
    let contents = list(&archive.concat(), 100, 1 << 20).unwrap();
    let [layer] = contents.parts.layers() else { panic!("one layer") };
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!((layer.digest.digits(), layer.bytes), (abc, 3));
    assert_eq!(contents.parts.config().bytes, 2);
}

#[test]
fn hostile_archives_are_refused() {
    let image = || manifest(r#"[{"Config":"config","Layers":[]}]"#);
    let config = || file("config", "{}");
    check(&[], "it ends too early");
    check(&[config(), image()], "it ends too early");
    check(&[vec![1; BLOCK]], "the head of an entry is damaged");
    let elsewhere =
        |name: &str| format!("it has an entry with the name {name:?}, which leads elsewhere");
    for name in ["/etc/passwd", "../up", "a/../../b", "a\\b", "a\nb", "a/.."] {
        check(&[file(name, "x"), end()], &elsewhere(name));
    }
    check(&[link("a/b", "../../up"), end()], &elsewhere("../../up"));
    check(&[link("a", "/etc/shadow"), end()], &elsewhere("/etc/shadow"));
    check(
        &[head("x", b'1', 0, "config"), end()],
        "it has an entry of kind '1', which no image's archive has",
    );
    check(
        &[head("x", b'3', 0, ""), end()],
        "it has an entry of kind '3', which no image's archive has",
    );
    check(
        &[head("x", b'5', 512, ""), end()],
        "it has an entry of kind '5', which no image's archive has",
    );
    check(&[config(), config(), end()], "it has the entry \"config\" twice");
    check(&[link("config", "x"), config(), end()], "it has the entry \"config\" twice");
    check(&[config(), end()], "it does not say which files are the image, or of one image alone");
    let two = manifest(r#"[{"Config":"config","Layers":[]},{"Config":"config","Layers":[]}]"#);
    check(
        &[config(), two, end()],
        "it does not say which files are the image, or of one image alone",
    );
    check(&[image(), end()], "it lacks the file \"config\", which is of the image");
    let turns = manifest(r#"[{"Config":"a","Layers":[]}]"#);
    check(
        &[link("a", "b"), link("b", "a"), turns, end()],
        "it lacks the file \"a\", which is of the image",
    );
    // What it says of its size counts before its bytes come.
    let large = "it has more than 1048576 bytes";
    check(&[head("a", b'0', 1 << 21, "")], large);
    let mut huge = head("a", b'0', 0, "");
    huge[124..136]
        .copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    check(&[sealed(huge)], large);
    check(&[records(b'x', &[("size", "99999999999")]), file("a", "x")], large);
    check(&[records(b'x', &[("size", "-1")]), file("a", "x")], "the head of an entry is damaged");
    check(&[head("a", b'x', RECORDS_MAX + 1, "")], "the head of an entry is damaged");
    let layers = vec!["\"config\""; 513].join(",");
    let many = manifest(&format!(r#"[{{"Config":"config","Layers":[{layers}]}}]"#));
    check(&[config(), many, end()], "an image has at most 512 layers");
}

#[test]
fn entries_are_counted_and_the_manifest_is_bounded() {
    let many: Vec<Vec<u8>> = (0..=ENTRIES_MAX).map(|n| directory(&n.to_string())).collect();
    let fault = list(&many.concat(), 1 << 16, 1 << 30).unwrap_err();
    assert!(matches!(fault, Fault::Entries), "{fault}");
    let large = manifest(&" ".repeat(usize::try_from(MANIFEST_MAX).unwrap() + 1));
    let fault = list(&large, 1 << 16, 1 << 30).unwrap_err();
    assert!(matches!(fault, Fault::Manifest), "{fault}");
}

proptest! {
    #[test]
    fn any_bytes_are_an_archive_or_none(entries: Vec<(String, u8, u16, String)>, chunk in 1_usize..2000) {
        let mut archive = Vec::new();
        for (name, kind, bytes, target) in entries {
            let cut = |text: &str| text.bytes().take(90).collect::<Vec<u8>>();
            let mut entry = vec![0; BLOCK];
            let (name, target) = (cut(&name), cut(&target));
            entry[..name.len()].copy_from_slice(&name);
            entry[157..157 + target.len()].copy_from_slice(&target);
            entry[124..135].copy_from_slice(format!("{bytes:011o}").as_bytes());
            entry[156] = kind;
            archive.extend(sealed(entry));
            archive.extend(vec![7; usize::from(bytes).next_multiple_of(BLOCK)]);
        }
        archive.extend(end());
        let whole = list(&archive, archive.len(), 1 << 20).map_err(|fault| fault.to_string());
        let parts = list(&archive, chunk, 1 << 20).map_err(|fault| fault.to_string());
        prop_assert_eq!(whole, parts);
    }
}
