//! Makes a base image from distribution packages, without loop mounts.
//!
//! ```text
//! mmdebstrap ─► tree ─► mke2fs -d ─► raw ─► qemu-img convert ─► disk.qcow2
//!                └────► kernel, initial RAM disk, list of packages
//! ```
//!
//! The disk is one ext4 file system without a partition table; kernel and initial RAM disk lie
//! beside it and are loaded by the hypervisor. It is plain qcow2, not compressed, unless asked:
//! a guest reads it at every boot.
//!
//! # Invariants
//! - Everything happens in one half-made directory of the store, in namespaces that end with
//!   the build: a build that is cut off leaves no mount, no process and no file.
//! - Same inputs (this recipe among them), same image: it is built once.

use super::manifest::{Boot, DISK, FORMAT, INITRD, KERNEL, Manifest, Origin, digest_of, id_of};
use super::names::{ImageId, ImageName, Mirror, PackageName, Suite};
use super::privilege::{Privilege, remove_tree};
use super::store::{Draft, Image, Store};
use super::{Error, sources};
use crate::job::{Job, Tool};
use model::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The label the root file system is found by.
pub const ROOT_LABEL: &str = "twin-root";
const COMMAND_LINE: &str = "root=LABEL=twin-root rw console=ttyS0 quiet";

/// What every image has, beside what is essential and its kernel. Where that kernel has AppArmor,
/// the engine starts no container without its parser.
const PACKAGES: &[&str] = &[
    "acl",
    "apparmor",
    "ca-certificates",
    "cloud-init",
    "dbus",
    "docker.io",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "lz4",
    "netbase",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "qemu-guest-agent",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
];

const PREPARE: &str = include_str!("guest/prepare");
const CUSTOMIZE: &str = include_str!("guest/customize");
/// What is laid over the installed packages.
const FILES: &[(&str, &str)] = &[
    ("etc/fstab", include_str!("guest/fstab")),
    ("etc/systemd/network/80-safetytwin.network", include_str!("guest/80-safetytwin.network")),
    ("etc/cloud/cloud.cfg.d/95_safetytwin.cfg", include_str!("guest/95_safetytwin.cfg")),
    ("etc/systemd/system/twin-guest.service", include_str!("guest/twin-guest.service")),
    ("etc/udev/rules.d/90-twin-guest.rules", include_str!("guest/90-twin-guest.rules")),
];

/// What kind of image to build.
#[derive(Debug, Clone)]
pub struct Builder {
    pub name: ImageName,
    pub suite: Suite,
    /// The machine's own mirrors, when none is named.
    pub mirror: Option<Mirror>,
    /// Beyond the ones every image has.
    pub packages: BTreeSet<PackageName>,
    /// Of the disk; a machine's own layer may be larger, its file system grows at boot.
    pub size_bytes: u64,
    /// The program `twin-guest`, which becomes a service of the guest.
    pub agent: Option<PathBuf>,
    /// A third of the space, for some time at every boot.
    pub compress: bool,
    /// Take an image that was built from the same inputs, though packages may be newer now.
    pub reuse: bool,
}

impl Builder {
    /// Debian bookworm on a disk of 8 GiB, without an agent.
    #[must_use]
    pub fn new(name: ImageName) -> Self {
        Self {
            name,
            suite: "bookworm".parse().expect("lower-case letters are a suite"),
            mirror: None,
            packages: BTreeSet::new(),
            size_bytes: 8 << 30,
            agent: None,
            compress: false,
            reuse: true,
        }
    }

    /// Builds the image, or finds the one that was built before.
    pub async fn build(&self, store: &Store, job: &Job, now: Time) -> Result<Image, Error> {
        job.step("Looking at what is needed");
        let architecture = architecture(job).await?;
        let agent = match self.agent.clone() {
            Some(path) => Some(job.block(move || read_agent(&path)).await?),
            None => None,
        };
        let origin = Origin::Built {
            suite: self.suite.clone(),
            mirror: self.mirror.clone(),
            packages: self.packages.iter().cloned().collect(),
            agent: agent.as_deref().map(|agent| id_of(&blake3::hash(agent))),
        };
        let inputs = self.inputs(&origin, &architecture)?;
        if self.reuse {
            let (store, inputs, name) = (store.clone(), inputs.clone(), self.name.clone());
            let job_ = job.clone();
            let found = job.block(move || match store.by_inputs(&inputs, &job_)? {
                Some(image) => store.call(image, &name).map(Some),
                None => Ok(None),
            });
            if let Some(image) = found.await? {
                job.step(format!("Image {} was built before", image.manifest.digest));
                return Ok(image);
            }
        }
        let privilege = Privilege::find(job).await?;
        let draft = {
            let store = store.clone();
            job.block(move || store.draft()).await?
        };
        let work = Work { privilege, at: draft.path().join("work"), architecture };
        self.fill(job, &work, agent).await?;
        let packages = self.pack(job, &work, &draft).await?;
        let manifest = Manifest {
            format: FORMAT,
            digest: inputs.clone(),
            names: BTreeSet::from([self.name.clone()]),
            created: now,
            architecture: Some(work.architecture),
            origin,
            inputs,
            packages,
            virtual_size_bytes: self.size_bytes,
            boot: Boot::Kernel { command_line: COMMAND_LINE.to_owned() },
            files: BTreeMap::new(),
        };
        job.step("Storing the image");
        let job_ = job.clone();
        job.block(move || draft.seal(manifest, &job_)).await
    }

    fn inputs(&self, origin: &Origin, architecture: &str) -> Result<ImageId, Error> {
        let recipe = (PACKAGES, PREPARE, CUSTOMIZE, FILES, COMMAND_LINE, ROOT_LABEL);
        digest_of(&(origin, architecture, self.size_bytes, self.compress, recipe))
    }

    /// Installs the packages into a tree.
    async fn fill(&self, job: &Job, work: &Work, agent: Option<Vec<u8>>) -> Result<(), Error> {
        job.step(format!("Installing packages of {}", self.suite));
        let sources = sources::list(job, &self.suite, self.mirror.as_ref()).await?;
        let options = sources::options(job).await?;
        let at = work.at.clone();
        job.block(move || lay_out(&at, &sources, &options, agent.as_deref())).await?;
        let mut packages: Vec<&str> = PACKAGES.to_vec();
        let kernel = format!("linux-image-cloud-{}", work.architecture);
        packages.push(&kernel);
        packages.extend(self.packages.iter().map(PackageName::as_str));
        let hook = |name: &str, file: &str| format!("--{name}={}", work.at.join(file).display());
        let mut tool = work.privilege.tool("mmdebstrap", "mmdebstrap").args([
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
        ]);
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        if keyring.exists() {
            tool = tool.arg(format!("--keyring={}", keyring.display()));
        }
        let tool = tool
            .arg(format!("--architectures={}", work.architecture))
            .arg(format!("--include={}", packages.join(",")))
            .arg(hook("aptopt", "apt.conf"))
            .arg(hook("extract-hook", "prepare"))
            .arg(hook("customize-hook", "customize"))
            .arg(self.suite.as_str())
            .arg(work.at.join("tree"))
            .arg(work.at.join("sources.list"));
        Ok(job.run(tool).await?)
    }

    /// Turns the tree into a disk, with kernel and initial RAM disk beside it.
    async fn pack(
        &self,
        job: &Job,
        work: &Work,
        draft: &Draft,
    ) -> Result<BTreeMap<String, String>, Error> {
        job.step("Making the disk");
        let (tree, raw) = (work.at.join("tree"), draft.path().join("disk.raw"));
        let size = self.size_bytes;
        let (from, to, file) = (tree.clone(), draft.path().to_owned(), raw.clone());
        let packages = job.block(move || {
            take(&from, &to)?;
            let made = fs::File::create(&file).and_then(|file| file.set_len(size));
            made.map_err(Error::file("make", &file))?;
            let status = from.join("var/lib/dpkg/status");
            let text = fs::read_to_string(&status).map_err(Error::file("read", &status))?;
            Ok::<_, Error>(installed(&text))
        });
        let packages = packages.await?;
        // All tables are written now, so that the guest's kernel has none to clear later.
        let format = work.privilege.tool("mke2fs", "e2fsprogs");
        let format = format.args(["-q", "-F", "-t", "ext4", "-L", ROOT_LABEL, "-m", "1"]);
        let format = format.args(["-J", "size=32", "-E"]);
        let format = format.arg("lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard");
        job.run(format.arg("-d").arg(&tree).arg(&raw)).await?;
        let mut convert =
            Tool::new("qemu-img", "qemu-utils").args(["convert", "-f", "raw", "-O", "qcow2"]);
        if self.compress {
            convert = convert.args(["-c", "-o", "compression_type=zstd"]);
        }
        job.run(convert.arg(&raw).arg(draft.path().join(DISK))).await?;
        let at = work.at.clone();
        job.block(move || {
            fs::remove_file(&raw).map_err(Error::file("remove", &raw))?;
            remove_tree(&at).map_err(Error::file("remove", &at))
        })
        .await?;
        Ok(packages)
    }
}

/// Where a build goes on, and as whom.
struct Work {
    privilege: Privilege,
    at: PathBuf,
    architecture: String,
}

async fn architecture(job: &Job) -> Result<String, Error> {
    let answer = job.ask(Tool::new("dpkg", "dpkg").arg("--print-architecture")).await?;
    let architecture = answer.trim();
    match architecture {
        "amd64" | "arm64" => Ok(architecture.to_owned()),
        other => Err(Error::Privilege { what: format!("no images are built for {other}") }),
    }
}

/// The agent has to be a program: a path to something else is noticed now, not in the guest.
fn read_agent(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |what: &str| Error::Agent { path: path.to_owned(), what: what.to_owned() };
    let content = fs::read(path).map_err(Error::file("read", path))?;
    if !content.starts_with(b"\x7fELF") {
        return Err(wrong("it is no program"));
    }
    Ok(content)
}

/// Writes what mmdebstrap reads: sources, options, hooks, and the files to lay over.
fn lay_out(at: &Path, sources: &str, options: &str, agent: Option<&[u8]>) -> Result<(), Error> {
    let put = |path: &str, content: &[u8], mode: u32| -> io::Result<()> {
        let path = at.join(path);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    };
    let all = || -> io::Result<()> {
        put("sources.list", sources.as_bytes(), 0o600)?;
        put("apt.conf", options.as_bytes(), 0o600)?;
        put("prepare", PREPARE.as_bytes(), 0o755)?;
        put("customize", CUSTOMIZE.as_bytes(), 0o755)?;
        for (path, content) in FILES {
            put(&format!("files/{path}"), content.as_bytes(), 0o644)?;
        }
        agent.map_or(Ok(()), |agent| put("files/usr/bin/twin-guest", agent, 0o755))
    };
    all().map_err(Error::file("write in", at))
}

/// Copies kernel and initial RAM disk out of the tree. Debian links the newest ones.
fn take(tree: &Path, to: &Path) -> Result<(), Error> {
    let boot = tree.join("boot");
    for (start, name) in [("vmlinuz-", KERNEL), ("initrd.img-", INITRD)] {
        let entries = fs::read_dir(&boot).map_err(Error::file("list", &boot))?;
        let newest = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|file| file.starts_with(start))
            .max();
        let Some(newest) = newest else {
            let missing = io::Error::new(io::ErrorKind::NotFound, format!("no {start}*"));
            return Err(Error::file("find a kernel in", &boot)(missing));
        };
        let from = boot.join(newest);
        fs::copy(&from, to.join(name)).map_err(Error::file("copy", &from))?;
    }
    Ok(())
}

/// Names and versions of the packages that dpkg's status says are installed.
fn installed(status: &str) -> BTreeMap<String, String> {
    let field = |stanza: &str, name: &str| {
        stanza.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let stanzas = status.split("\n\n").filter(|stanza| {
        field(stanza, "Status:").is_some_and(|status| status.ends_with(" installed"))
    });
    stanzas
        .filter_map(|stanza| Some((field(stanza, "Package:")?, field(stanza, "Version:")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_are_listed() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\n\n\
            Package: b\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: c\n\nrubbish";
        assert_eq!(installed(status), BTreeMap::from([("a".to_owned(), "1:2-3".to_owned())]));
    }

    #[test]
    fn every_input_makes_another_image() {
        let builder = Builder::new("base".parse().unwrap());
        let origin = |packages: Vec<PackageName>| Origin::Built {
            suite: builder.suite.clone(),
            mirror: None,
            packages,
            agent: None,
        };
        let plain = builder.inputs(&origin(Vec::new()), "amd64").unwrap();
        let more = builder.inputs(&origin(vec!["nginx".parse().unwrap()]), "amd64").unwrap();
        let larger = Builder { size_bytes: 9 << 30, ..builder.clone() };
        let larger = larger.inputs(&origin(Vec::new()), "amd64").unwrap();
        assert_eq!(BTreeSet::from([&plain, &more, &larger]).len(), 3);
        assert_eq!(plain, builder.inputs(&origin(Vec::new()), "amd64").unwrap());
    }

    #[test]
    fn an_agent_is_a_program() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "#!/bin/sh\n").unwrap();
        assert!(read_agent(file.path()).unwrap_err().to_string().contains("no program"));
    }
}
