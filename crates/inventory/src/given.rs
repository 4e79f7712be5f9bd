//! What a guest was given by its VMM, and so what that may use where its unit sets no limit. Pure.

use crate::record::Limits;
use model::load::VmmLoad;
use model::vm::Vmm;

/// What a VMM may have for itself: so many bytes, and a quarter of its guest's memory. One whose
/// guest uses all that it has is not near that limit; one that grows and grows is.
const OVERHEAD_BYTES: u64 = 256 << 20;

/// Processors and memory of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Given {
    vcpus: Option<u64>,
    memory_bytes: Option<u64>,
}

impl Limits {
    /// By what a VMM says of its guest.
    #[must_use]
    pub fn of_guest(vmm: &VmmLoad) -> Self {
        Given { vcpus: vmm.vcpus, memory_bytes: vmm.memory_bytes }.limits()
    }
}

impl Given {
    /// By the arguments that a VMM was started with: the most that the guest may come to have.
    pub(crate) fn asked(vmm: Vmm, words: &[String]) -> Self {
        // Of a number without a unit.
        let scale = if vmm == Vmm::CloudHypervisor { 1 } else { 1 << 20 };
        let memory = value(words, &["m", "mem", "memory"]).and_then(|text| {
            let named = |name: &str| bytes(option(text, name)?, scale);
            let size = named("size").or_else(|| bytes(first(text)?, scale))?;
            let later = size.saturating_add(named("hotplug_size").unwrap_or(0));
            Some(later.max(named("maxmem").unwrap_or(0)))
        });
        let vcpus = value(words, &["smp", "cpus", "c"]).and_then(|text| {
            let names = ["max", "maxcpus", "boot", "cpus", "num-cores"];
            let named = names.iter().find_map(|name| option(text, name));
            named.or_else(|| first(text))?.parse().ok()
        });
        // None is none, and not a limit: memory in zones is said elsewhere.
        Self {
            vcpus: vcpus.filter(|&count| count > 0),
            memory_bytes: memory.filter(|&bytes| bytes > 0),
        }
    }

    pub(crate) fn limits(self) -> Limits {
        let memory = |guest: u64| guest.saturating_add(guest / 4).saturating_add(OVERHEAD_BYTES);
        Limits {
            memory_bytes: self.memory_bytes.map(memory),
            cpu_percent: self.vcpus.map(|count| count.saturating_mul(100)),
        }
    }
}

/// What follows an argument, or stands in it behind `=`.
fn value<'w>(words: &'w [String], names: &[&str]) -> Option<&'w str> {
    let named = |word: &'w str| {
        let name = word.strip_prefix('-')?;
        let name = name.strip_prefix('-').unwrap_or(name);
        let (name, value) = name.split_once('=').map_or((name, None), |(n, v)| (n, Some(v)));
        names.contains(&name).then_some(value)
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match named(word) {
            Some(Some(value)) => return Some(value),
            Some(None) => return words.next().map(String::as_str),
            None => {}
        }
    }
    None
}

/// The value of `name=` in `first,key=value,…`.
fn option<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

/// The first, where it has no name.
fn first(text: &str) -> Option<&str> {
    text.split(',').next().filter(|part| !part.contains('='))
}

/// `512`, `512M`, `1GiB`.
fn bytes(text: &str, scale: u64) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = match unit.chars().next().map(|c| c.to_ascii_uppercase()) {
        None => scale,
        Some('K') => 1 << 10,
        Some('M') => 1 << 20,
        Some('G') => 1 << 30,
        Some('T') => 1 << 40,
        Some(_) => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(vmm: Vmm, line: &str, vcpus: Option<u64>, mebibytes: Option<u64>) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let expected = Given { vcpus, memory_bytes: mebibytes.map(|count| count << 20) };
        assert_eq!(Given::asked(vmm, &words), expected, "{line}");
    }

    #[test]
    fn what_vmms_are_asked_for() {
        check(Vmm::Qemu, "qemu -M microvm,mem-merge=on -m 512 -smp 2", Some(2), Some(512));
        check(Vmm::Qemu, "-m size=1G,slots=2,maxmem=4G -smp cpus=2,maxcpus=8", Some(8), Some(4096));
        check(Vmm::Qemu, "-smp sockets=1,cores=2 -m 1.5G", None, None);
        check(Vmm::Qemu, "-cpu host -mem-path /x -m", None, None);
        check(
            Vmm::CloudHypervisor,
            "--cpus boot=2,max=4 --memory size=512M,hotplug_size=512M,shared=on",
            Some(4),
            Some(1024),
        );
        check(Vmm::CloudHypervisor, "--memory=size=1073741824 --cpus=boot=1", Some(1), Some(1024));
        check(Vmm::CloudHypervisor, "--memory size=0 --memory-zone size=1G,id=a", None, None);
        check(Vmm::Crosvm, "run -c 2 --mem 256 kernel", Some(2), Some(256));
        check(Vmm::Crosvm, "run --cpus num-cores=3 --mem size=256", Some(3), Some(256));
        check(Vmm::Kvmtool, "run -m 128 -c 1 --name a", Some(1), Some(128));
        check(Vmm::Stratovirt, "-machine microvm -m 2g -smp 2", Some(2), Some(2048));
        check(Vmm::Firecracker, "--api-sock /run/f --id a", None, None);
        check(Vmm::Qemu, "-m 99999999999999999999 -smp -1", None, None);
        check(Vmm::Qemu, "-m 18446744073709551615", None, None);
    }

    #[test]
    fn a_guest_that_uses_all_it_has_is_not_near_the_limit() {
        for guest in [64 << 20, 1 << 30, 64 << 30] {
            let vmm = VmmLoad { vcpus: Some(2), memory_bytes: Some(guest), ..VmmLoad::default() };
            let limits = Limits::of_guest(&vmm);
            assert!((guest + (64 << 20)) * 10 < limits.memory_bytes.unwrap() * 9, "{guest}");
            assert_eq!(limits.cpu_percent, Some(200));
        }
        assert_eq!(Limits::of_guest(&VmmLoad::default()), Limits::default());
    }

    proptest! {
        #[test]
        fn anything_goes_in(words in prop::collection::vec("(-m|--memory|-smp|--cpus|size=|boot=|[0-9]{1,21}|[KMGTkü]|,|=){0,5}", 0..6)) {
            for vmm in Vmm::ALL {
                Given::asked(*vmm, &words).limits();
            }
        }
    }
}
