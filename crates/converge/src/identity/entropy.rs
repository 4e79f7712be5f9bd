//! Randomness of its own. A clone begins with the other machine's random pool; without this, both
//! would go on to make the same "random" keys.

use super::{Error, file, is_live};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use rustix::rand::{GetRandomFlags, getrandom};
use std::path::Path;

/// `RNDADDENTROPY`, declared with two numbers though it takes what is in [`Pool`].
const ADD: Opcode = opcode::write::<[i32; 2]>(b'R', 3);
/// `RNDRESEEDCRNG`.
const RESEED: Opcode = opcode::none(b'R', 7);

/// Bytes given to the kernel at a time.
const PART: usize = 64;

/// `struct rand_pool_info`.
#[repr(C)]
struct Pool {
    entropy_bits: i32,
    bytes: i32,
    content: [u8; PART],
}

pub(super) fn add(root: &Path, entropy: &[u8]) -> Result<(), Error> {
    if is_live(root) {
        give(entropy)?;
    }
    keep(root)
}

fn give(entropy: &[u8]) -> Result<(), Error> {
    let random = rustix::fs::open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let random = random.map_err(Error::kernel("open /dev/urandom"))?;
    for part in entropy.chunks(PART) {
        let bytes = i32::try_from(part.len()).unwrap_or(0);
        let mut content = [0; PART];
        content.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        let pool = Pool { entropy_bits: bytes * 8, bytes, content };
        #[expect(unsafe_code, reason = "no safe crate of ours gives the kernel entropy")]
        // SAFETY: RNDADDENTROPY reads a rand_pool_info, of whose content `bytes`, at most PART.
        let added = unsafe { ioctl(&random, Setter::<ADD, Pool>::new(pool)) };
        added.map_err(Error::kernel("take entropy"))?;
    }
    #[expect(unsafe_code, reason = "no safe crate of ours tells the kernel to reseed")]
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let reseeded = unsafe { ioctl(&random, NoArg::<RESEED>::new()) };
    reseeded.map_err(Error::kernel("use the entropy at once"))
}

/// The seed that the next boot begins with, where systemd keeps one.
fn keep(root: &Path) -> Result<(), Error> {
    let path = root.join("var/lib/systemd/random-seed");
    let Some(old) = file::read(&path)? else { return Ok(()) };
    let mut seed = vec![0; old.len().clamp(32, 512)];
    let filled = getrandom(seed.as_mut_slice(), GetRandomFlags::NONBLOCK);
    let filled = filled.map_err(Error::kernel("give random bytes"))?;
    seed.truncate(filled);
    Ok(file::replace(&path, &seed, 0o600)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_seed_of_the_next_boot_is_another() {
        let root = tempfile::tempdir().unwrap();
        add(root.path(), &[1; 32]).unwrap();
        let path = root.path().join("var/lib/systemd/random-seed");
        assert!(!path.exists());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, [7; 32]).unwrap();
        add(root.path(), &[1; 32]).unwrap();
        let one = fs::read(&path).unwrap();
        add(root.path(), &[1; 32]).unwrap();
        assert_eq!(one.len(), 32);
        assert_ne!(one, [7; 32]);
        assert_ne!(one, fs::read(&path).unwrap());
    }
}
