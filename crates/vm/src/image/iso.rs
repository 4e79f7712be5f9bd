//! Writes the small ISO 9660 file system a seed is delivered on.
//!
//! cloud-init looks for a file system of type `iso9660` (or `vfat`) with the label `cidata`,
//! lets the kernel mount it and reads `meta-data`, `user-data` and `network-config`. Linux
//! shows `USER-DATA.;1` as `user-data`, so plain level-2 names in one directory are enough:
//! neither Joliet nor Rock Ridge is needed, and no program has to be installed to make it.
//!
//! # Invariants
//! - Same files, same bytes: the only time in it is a fixed one.
//! - Every file lies whole within the image, and the directory fits one sector.

use super::Error;

const SECTOR: usize = 2048;
const SYSTEM_AREA: usize = 16;
const PATH_TABLE_LITTLE: u32 = 18;
const PATH_TABLE_BIG: u32 = 19;
const ROOT: u32 = 20;
const FIRST_FILE: u32 = 21;
/// 2000-01-01, for directory records.
const DAY: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];

/// A file of the image: a name of lower-case letters, digits and `-`, and what is in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    pub(super) name: &'a str,
    pub(super) content: &'a [u8],
}

/// The image, whole. The label is lower case on purpose: all of cloud-init's versions take it.
pub(super) fn image(label: &str, files: &[File<'_>]) -> Result<Vec<u8>, Error> {
    let mut files = files.to_vec();
    files.sort_by_key(|file| file.name);
    let directory = directory(&files)?;
    let mut out = vec![0; SYSTEM_AREA * SECTOR];
    let sectors = files.iter().map(|file| sectors(file.content.len())).sum::<usize>();
    let total = number(FIRST_FILE as usize + sectors)?;
    out.extend(volume(label, total)?);
    out.extend(sector(&terminator())?);
    out.extend(sector(&path_table(u32::to_le_bytes(ROOT), 1_u16.to_le_bytes()))?);
    out.extend(sector(&path_table(u32::to_be_bytes(ROOT), 1_u16.to_be_bytes()))?);
    out.extend(sector(&directory)?);
    for file in &files {
        out.extend_from_slice(file.content);
        out.resize(out.len().next_multiple_of(SECTOR), 0);
    }
    Ok(out)
}

fn sectors(bytes: usize) -> usize {
    bytes.div_ceil(SECTOR)
}

fn number(value: usize) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_large| Error::Seed { what: format!("{value} bytes or sectors") })
}

/// One sector that begins with these bytes.
fn sector(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut sector = bytes.to_vec();
    if sector.len() > SECTOR {
        return Err(Error::Seed { what: "so many files".to_owned() });
    }
    sector.resize(SECTOR, 0);
    Ok(sector)
}

fn directory(files: &[File<'_>]) -> Result<Vec<u8>, Error> {
    let mut records = record(&[0], ROOT, number(SECTOR)?, true)?;
    records.extend(record(&[1], ROOT, number(SECTOR)?, true)?);
    let mut at = FIRST_FILE;
    for file in files {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if file.name.is_empty() || file.name.len() > 28 || !file.name.chars().all(plain) {
            return Err(Error::Seed { what: format!("a file called {:?}", file.name) });
        }
        let name = format!("{}.;1", file.name.to_ascii_uppercase());
        records.extend(record(name.as_bytes(), at, number(file.content.len())?, false)?);
        at += number(sectors(file.content.len()))?;
    }
    Ok(records)
}

/// A directory record: where a file lies, how long it is, and its name.
fn record(name: &[u8], sector: u32, length: u32, is_directory: bool) -> Result<Vec<u8>, Error> {
    let long = || Error::Seed { what: "so long a file name".to_owned() };
    let padding = usize::from(name.len().is_multiple_of(2));
    let size = u8::try_from(33 + name.len() + padding).map_err(|_long| long())?;
    let mut out = vec![size, 0];
    out.extend(both32(sector));
    out.extend(both32(length));
    out.extend(DAY);
    out.extend([if is_directory { 2 } else { 0 }, 0, 0]);
    out.extend(both16(1));
    out.push(u8::try_from(name.len()).map_err(|_long| long())?);
    out.extend(name);
    out.resize(usize::from(size), 0);
    Ok(out)
}

fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut out = vec![1, 0];
    out.extend(root);
    out.extend(parent);
    out.extend([0, 0]);
    out
}

/// The primary volume descriptor: fields in the order of ECMA-119, 8.4.
fn volume(label: &str, total_sectors: u32) -> Result<Vec<u8>, Error> {
    let mut out = vec![1];
    out.extend(b"CD001\x01\0");
    out.extend(text("LINUX", 32));
    out.extend(text(label, 32));
    out.extend([0; 8]);
    out.extend(both32(total_sectors));
    out.extend([0; 32]);
    out.extend(both16(1)); // volumes in the set
    out.extend(both16(1)); // this one's number
    out.extend(both16(2048));
    out.extend(both32(10)); // bytes of the path table
    out.extend(PATH_TABLE_LITTLE.to_le_bytes());
    out.extend([0; 4]);
    out.extend(PATH_TABLE_BIG.to_be_bytes());
    out.extend([0; 4]);
    out.extend(record(&[0], ROOT, number(SECTOR)?, true)?);
    for length in [128, 128, 128, 128, 37, 37, 37] {
        out.extend(text("", length)); // set, publisher, preparer, application, three files
    }
    out.extend(moment("2000010100000000")); // created
    out.extend(moment("2000010100000000")); // changed
    out.extend(moment("0000000000000000")); // expires: never
    out.extend(moment("0000000000000000")); // valid from: always
    out.push(1);
    sector(&out)
}

fn terminator() -> Vec<u8> {
    let mut out = vec![255];
    out.extend(b"CD001\x01");
    out
}

fn moment(digits: &str) -> Vec<u8> {
    let mut out = digits.as_bytes().to_vec();
    out.push(0); // offset from UTC
    out
}

fn text(value: &str, length: usize) -> Vec<u8> {
    let mut out: Vec<u8> = value.bytes().take(length).collect();
    out.resize(length, b' ');
    out
}

fn both32(value: u32) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

fn both16(value: u16) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn u32_at(image: &[u8], at: usize) -> usize {
        let little = u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        assert_eq!(little, u32::from_be_bytes(image[at + 4..at + 8].try_into().unwrap()));
        little as usize
    }

    /// Reads an image back as the kernel does, by the descriptor alone.
    fn read(image: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let volume = 16 * SECTOR;
        assert_eq!(&image[volume..volume + 7], b"\x01CD001\x01");
        assert_eq!(&image[volume + 40..volume + 72], text("cidata", 32));
        assert_eq!(u32_at(image, volume + 80) * SECTOR, image.len());
        let root = u32_at(image, volume + 156 + 2) * SECTOR;
        let mut at = root;
        let mut files = BTreeMap::new();
        while image[at] != 0 && at < root + SECTOR {
            let name = &image[at + 33..at + 33 + usize::from(image[at + 32])];
            if image[at + 25] & 2 == 0 {
                let name = std::str::from_utf8(name).unwrap().strip_suffix(".;1").unwrap();
                let begin = u32_at(image, at + 2) * SECTOR;
                let content = &image[begin..begin + u32_at(image, at + 10)];
                files.insert(name.to_ascii_lowercase(), content.to_vec());
            }
            at += usize::from(image[at]);
        }
        files
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            files in prop::collection::btree_map("[a-z0-9-]{1,28}", prop::collection::vec(any::<u8>(), 0..5000), 0..16)
        ) {
            let list: Vec<File<'_>> = files.iter().map(|(name, content)| File { name, content }).collect();
            let image = image("cidata", &list).unwrap();
            prop_assert_eq!(image.len() % SECTOR, 0);
            prop_assert_eq!(read(&image), files);
        }
    }

    #[test]
    fn names_and_numbers_of_files_are_limited() {
        for name in ["", "../x", "USER", "a.b", "a-name-that-is-longer-than-allowed"] {
            assert!(image("cidata", &[File { name, content: b"" }]).is_err(), "{name}");
        }
        let names: Vec<String> = (0..60).map(|n| format!("a-file-with-a-name-{n:02}")).collect();
        let files: Vec<File<'_>> = names.iter().map(|name| File { name, content: b"" }).collect();
        assert!(image("cidata", &files).is_err());
    }
}
