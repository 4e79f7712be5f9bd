//! Graphics processors as the kernel lists them: every display controller on the PCI bus.

use crate::Root;
use crate::text::{base_name, decimal, lines, printable};
use model::entity::Gpu;
use model::load::GpuLoad;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Devices on the bus that are looked at.
const DEVICES_MAX: usize = 4096;
/// The beginning of the class of display controllers.
const DISPLAY: &str = "0x03";

/// All of them, by bus address.
pub(super) fn devices(root: &Root) -> Vec<(Gpu, GpuLoad)> {
    let Ok(entries) = fs::read_dir(root.sys("bus/pci/devices")) else { return Vec::new() };
    let mut devices: Vec<_> = entries
        .take(DEVICES_MAX)
        .flatten()
        .filter(|entry| short(&entry.path(), "class").is_some_and(|c| c.starts_with(DISPLAY)))
        .map(|entry| device(root, &entry.path()))
        .collect();
    devices.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    devices
}

fn device(root: &Root, path: &Path) -> (Gpu, GpuLoad) {
    use std::os::unix::ffi::OsStrExt;
    let id = path.file_name().map(|name| printable(name.as_bytes())).unwrap_or_default();
    let identifier = |name| short(path, name)?.strip_prefix("0x").map(str::to_owned);
    let (vendor, product) = (identifier("vendor"), identifier("device"));
    let driver = fs::read_link(path.join("driver")).ok();
    let driver = driver.map(|target| base_name(&target.to_string_lossy()).to_owned());
    let driver = driver.map(|name| printable(name.as_bytes()));
    let version = driver.as_ref().and_then(|driver| {
        short(&root.sys(format!("module/{}", driver.replace('/', ""))), "version")
    });
    let number = |name: &str| decimal(short(path, name)?.as_bytes());
    let known = vendor.as_deref().zip(product.as_deref());
    let gpu = Gpu {
        id,
        vendor: vendor.as_deref().map(vendor_name),
        model: known.map(|(vendor, product)| {
            product_name(root, vendor, product).unwrap_or_else(|| format!("{vendor}:{product}"))
        }),
        uuid: None,
        memory_bytes: number("mem_info_vram_total").and_then(|bytes| i64::try_from(bytes).ok()),
        driver,
        driver_version: version,
    };
    let load = GpuLoad {
        busy_percent: number("gpu_busy_percent").map(|percent| percent as f64),
        memory_used_bytes: number("mem_info_vram_used"),
        temperature_celsius: temperature(path),
    };
    (gpu, load)
}

/// Of the first sensor, which is the edge of the chip.
fn temperature(device: &Path) -> Option<f64> {
    let sensor = fs::read_dir(device.join("hwmon")).ok()?.flatten().next()?;
    Some(decimal(short(&sensor.path(), "temp1_input")?.as_bytes())? as f64 / 1000.0)
}

/// A short text of the kernel's, on one line.
fn short(directory: &Path, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(directory.join(name)).ok()?.take(256).read_to_end(&mut bytes).ok()?;
    lines(&bytes).next().map(|line| printable(line.trim_ascii()))
}

fn vendor_name(id: &str) -> String {
    match id {
        "10de" => "NVIDIA",
        "1002" | "1022" => "AMD",
        "8086" => "Intel",
        "1af4" | "1b36" => "Red Hat (virtio)",
        "1234" => "QEMU",
        "15ad" => "VMware",
        "80ee" => "VirtualBox",
        "1414" => "Microsoft",
        "1a03" => "ASPEED",
        "102b" => "Matrox",
        "1013" => "Cirrus Logic",
        other => return other.to_owned(),
    }
    .to_owned()
}

/// The name of a device in the machine's own list of PCI ids, where it has one.
fn product_name(root: &Root, vendor: &str, product: &str) -> Option<String> {
    let lists = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];
    let list: PathBuf = lists.iter().map(|path| root.path(path)).find(|path| path.is_file())?;
    let mut reader = BufReader::new(File::open(list).ok()?.take(16 << 20));
    let mut line = Vec::new();
    let mut ours = false;
    loop {
        line.clear();
        if reader.by_ref().take(4096).read_until(b'\n', &mut line).ok()? == 0 {
            return None;
        }
        match line.first()? {
            b'\t' if ours => {
                let rest = line.strip_prefix(b"\t")?;
                if let Some(name) = rest.strip_prefix(product.as_bytes()) {
                    return Some(printable(name.trim_ascii()));
                }
            }
            b'\t' | b'#' | b'\n' => {}
            // Vendors are sorted, and each is listed once.
            _ if ours => return None,
            _ => ours = line.starts_with(vendor.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(root: &Root, address: &str, files: &[(&str, &str)]) {
        let directory = root.sys("bus/pci/devices").join(address);
        for (name, text) in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn display_controllers() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        assert!(devices(&root).is_empty());
        put(&root, "0000:00:1f.0", &[("class", "0x060100\n"), ("vendor", "0x8086\n")]);
        put(
            &root,
            "0000:03:00.0",
            &[
                ("class", "0x030000\n"),
                ("vendor", "0x1002\n"),
                ("device", "0x73bf\n"),
                ("mem_info_vram_total", "17163091968\n"),
                ("mem_info_vram_used", "1000\n"),
                ("gpu_busy_percent", "12\n"),
                ("hwmon/hwmon3/temp1_input", "46500\n"),
            ],
        );
        put(&root, "0000:01:00.0", &[("class", "0x030200\n"), ("vendor", "torn"), ("device", "")]);
        symlink(
            "../../../../bus/pci/drivers/amdgpu",
            root.sys("bus/pci/devices/0000:03:00.0/driver"),
        )
        .unwrap();
        fs::create_dir_all(root.sys("module/amdgpu")).unwrap();
        fs::write(root.sys("module/amdgpu/version"), "6.1\n").unwrap();
        fs::create_dir_all(root.path("/usr/share/misc")).unwrap();
        let list = "# comment\n1001  Other\n\t73bf  Wrong\n1002  AMD\n\t73be  Less\n\t73bf  Navi 21\n\t\t1002 0001  Sub\n1003  Next\n";
        fs::write(root.path("/usr/share/misc/pci.ids"), list).unwrap();
        let devices = devices(&root);
        assert_eq!(
            devices.iter().map(|d| d.0.id.as_str()).collect::<Vec<_>>(),
            ["0000:01:00.0", "0000:03:00.0"]
        );
        assert_eq!((&devices[0].0.vendor, &devices[0].0.model), (&None, &None));
        let (gpu, load) = &devices[1];
        assert_eq!((gpu.vendor.as_deref(), gpu.model.as_deref()), (Some("AMD"), Some("Navi 21")));
        assert_eq!(
            (gpu.driver.as_deref(), gpu.driver_version.as_deref()),
            (Some("amdgpu"), Some("6.1"))
        );
        assert_eq!(gpu.memory_bytes, Some(17_163_091_968));
        let expected = GpuLoad {
            busy_percent: Some(12.0),
            memory_used_bytes: Some(1000),
            temperature_celsius: Some(46.5),
        };
        assert_eq!(*load, expected);
        assert_eq!(product_name(&root, "1002", "ffff"), None);
    }
}
