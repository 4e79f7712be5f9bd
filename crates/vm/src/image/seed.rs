//! What a guest is told at its first boot: a NoCloud seed for cloud-init, on a CD-ROM.
//!
//! The documents are JSON, which every YAML reader takes. Unlike YAML it has no bare words:
//! a host called `no`, a password that looks like a number or a name with a colon can't turn
//! into something else. Nothing is pasted into a text; commands are lists of arguments, which
//! cloud-init quotes for the shell itself.

use super::Error;
use super::iso::{self, File};
use super::names::{
    GuestPath, HostName, MacAddress, PackageName, PasswordHash, PublicKey, UserName, is_printable,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// The label cloud-init looks for.
pub const LABEL: &str = "cidata";
/// Beyond that, user data is refused by some readers; nobody types that much.
const DOCUMENT_BYTES: usize = 1 << 20;
const AGENT: &str = "twin-guest";
const UNIT: &str = include_str!("guest/twin-guest.service");
const RULES: &str = include_str!("guest/90-twin-guest.rules");

/// All a seed says. cloud-init follows it once for each `instance`.
#[derive(Debug, Clone)]
pub struct Seed {
    /// Another value makes cloud-init set up the guest anew.
    pub instance: HostName,
    pub hostname: HostName,
    pub users: Vec<User>,
    pub network: Network,
    /// The SSH key the guest shows, so that it can be pinned before it was ever seen.
    pub host_key: Option<HostKey>,
    /// Installed by the guest from its own mirrors, which it must reach.
    pub packages: Vec<PackageName>,
    pub files: Vec<GuestFile>,
    /// Run at the end of the first boot: program and arguments, no shell.
    pub commands: Vec<Vec<String>>,
    /// The program `twin-guest`, for an image that does not have it.
    pub agent: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub struct User {
    pub name: UserName,
    pub keys: Vec<PublicKey>,
    /// For the console; SSH takes keys alone.
    pub password: Option<PasswordHash>,
    /// May become root without a password.
    pub administrator: bool,
}

#[derive(Debug, Clone, Default)]
pub enum Network {
    /// As the image is set up: images of ours ask by DHCP, and clones may have other addresses.
    #[default]
    Image,
    /// DHCP on the first interface, set up by cloud-init: for images from elsewhere.
    Dhcp,
    /// One interface with fixed addresses.
    Fixed(Fixed),
}

#[derive(Debug, Clone)]
pub struct Fixed {
    pub interface: MacAddress,
    /// With the length of the network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    pub gateway: Option<IpAddr>,
    pub name_servers: Vec<IpAddr>,
}

/// An Ed25519 key pair as OpenSSH writes it. `Debug` keeps the private half to itself.
#[derive(Clone)]
pub struct HostKey {
    pub private: String,
    pub public: PublicKey,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").field("public", &self.public).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub struct GuestFile {
    pub path: GuestPath,
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u16,
}

impl Seed {
    /// For an image of ours: a name, and nothing else yet.
    #[must_use]
    pub fn new(instance: HostName, hostname: HostName) -> Self {
        Self {
            instance,
            hostname,
            users: Vec::new(),
            network: Network::Image,
            host_key: None,
            packages: Vec::new(),
            files: Vec::new(),
            commands: Vec::new(),
            agent: None,
        }
    }

    /// What an image from elsewhere lacks: the network, and the programs that a twin needs.
    #[must_use]
    pub fn completing(mut self) -> Self {
        self.network = Network::Dhcp;
        for name in ["qemu-guest-agent", "python3", "sudo"] {
            self.packages.push(name.parse().expect("a plain word is a package's name"));
        }
        let enable = ["systemctl", "enable", "--now", "qemu-guest-agent.service"];
        self.commands.push(enable.map(str::to_owned).to_vec());
        self
    }

    /// The CD-ROM's content.
    pub fn iso(&self) -> Result<Vec<u8>, Error> {
        let user = document("#cloud-config\n", &self.user_data()?)?;
        let meta = document("", &self.meta_data())?;
        let mut files = vec![
            File { name: "user-data", content: &user },
            File { name: "meta-data", content: &meta },
        ];
        let network;
        if let Some(value) = self.network_config()? {
            network = document("", &value)?;
            files.push(File { name: "network-config", content: &network });
        }
        if let Some(agent) = &self.agent {
            files.push(File { name: AGENT, content: agent });
        }
        iso::image(LABEL, &files)
    }

    fn meta_data(&self) -> Value {
        json!({ "instance-id": self.instance, "local-hostname": self.hostname })
    }

    fn network_config(&self) -> Result<Option<Value>, Error> {
        let fixed = match &self.network {
            Network::Image => return Ok(Some(json!({ "network": { "config": "disabled" } }))),
            Network::Dhcp => return Ok(None),
            Network::Fixed(fixed) => fixed,
        };
        let mut addresses = Vec::new();
        for (address, prefix) in &fixed.addresses {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            if *prefix > longest {
                return Err(Error::Seed { what: format!("the address {address}/{prefix}") });
            }
            addresses.push(format!("{address}/{prefix}"));
        }
        let mut interface = json!({
            "match": { "macaddress": fixed.interface },
            "set-name": "eth0",
            "addresses": addresses,
            "nameservers": { "addresses": fixed.name_servers },
        });
        if let (Some(via), Some(interface)) = (fixed.gateway, interface.as_object_mut()) {
            let to = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            interface.insert("routes".to_owned(), json!([{ "to": to, "via": via }]));
        }
        Ok(Some(json!({ "version": 2, "ethernets": { "eth0": interface } })))
    }

    fn user_data(&self) -> Result<Value, Error> {
        let mut data = Map::new();
        let mut put = |key: &str, value: Value| drop(data.insert(key.to_owned(), value));
        let is_root = |user: &User| user.name.as_str() == "root";
        put("users", self.users.iter().map(user).collect());
        put("disable_root", json!(!self.users.iter().any(is_root)));
        put("ssh_pwauth", json!(false));
        put("fqdn", json!(self.hostname));
        put("prefer_fqdn_over_hostname", json!(false));
        if let Some(key) = &self.host_key {
            let plain = |c: char| c == '\n' || is_printable(c);
            if !key.private.starts_with("-----BEGIN ") || !key.private.chars().all(plain) {
                return Err(Error::Seed { what: "a host key that is not in PEM".to_owned() });
            }
            let keys = json!({ "ed25519_private": key.private, "ed25519_public": key.public });
            put("ssh_keys", keys);
        }
        if !self.packages.is_empty() {
            put("package_update", json!(true));
            put("packages", json!(self.packages));
        }
        let files = self.all_files();
        if !files.is_empty() {
            put("write_files", files.iter().map(guest_file).collect());
        }
        let commands = self.all_commands()?;
        if !commands.is_empty() {
            put("runcmd", json!(commands));
        }
        Ok(Value::Object(data))
    }

    fn all_files(&self) -> Vec<GuestFile> {
        let mut files = self.files.clone();
        if self.agent.is_some() {
            for (path, content) in [
                ("/etc/systemd/system/twin-guest.service", UNIT),
                ("/etc/udev/rules.d/90-twin-guest.rules", RULES),
            ] {
                let path = path.parse().expect("a path of ours is a guest's path");
                files.push(GuestFile { path, content: content.into(), mode: 0o644 });
            }
        }
        files
    }

    fn all_commands(&self) -> Result<Vec<Vec<String>>, Error> {
        let mut commands = Vec::new();
        if self.agent.is_some() {
            // The agent is too large for user data, so it lies on the CD-ROM as a file.
            for line in [
                "mkdir -p /run/safetytwin-seed",
                "mount -o ro LABEL=cidata /run/safetytwin-seed",
                "install -m 0755 /run/safetytwin-seed/twin-guest /usr/bin/twin-guest",
                "umount /run/safetytwin-seed",
                "udevadm control --reload",
                "systemctl daemon-reload",
                "systemctl start twin-guest.service",
            ] {
                commands.push(line.split(' ').map(str::to_owned).collect());
            }
        }
        for command in &self.commands {
            let plain = |word: &String| word.chars().all(|c| "\n\t".contains(c) || is_printable(c));
            if command.is_empty() || !command.iter().all(plain) {
                return Err(Error::Seed { what: format!("the command {command:?}") });
            }
            commands.push(command.clone());
        }
        Ok(commands)
    }
}

fn user(user: &User) -> Value {
    let mut value = json!({
        "name": user.name,
        "shell": "/bin/bash",
        "lock_passwd": user.password.is_none(),
        "ssh_authorized_keys": user.keys,
    });
    if let Some(value) = value.as_object_mut() {
        if user.administrator {
            value.insert("sudo".to_owned(), json!("ALL=(ALL) NOPASSWD:ALL"));
        }
        if let Some(password) = &user.password {
            // For a user that is new, and for one that the image has.
            value.insert("passwd".to_owned(), json!(password));
            value.insert("hashed_passwd".to_owned(), json!(password));
        }
    }
    value
}

fn guest_file(file: &GuestFile) -> Value {
    json!({
        "path": file.path,
        "permissions": format!("0{:o}", file.mode & 0o7777),
        "encoding": "b64",
        "content": STANDARD.encode(&file.content),
    })
}

fn document(head: &str, value: &Value) -> Result<Vec<u8>, Error> {
    let text = format!("{head}{value}\n");
    if text.len() > DOCUMENT_BYTES {
        return Err(Error::Seed { what: format!("{} bytes of settings", text.len()) });
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seed() -> Seed {
        Seed::new("web01-1".parse().unwrap(), "web01".parse().unwrap())
    }

    #[test]
    fn names_that_yaml_would_take_for_something_else_stay_names() {
        let mut seed = Seed::new("1e3".parse().unwrap(), "no".parse().unwrap());
        let user = User {
            name: "null".parse().unwrap(),
            keys: vec!["ssh-ed25519 AAAAC3Nz a: b # c".parse().unwrap()],
            password: None,
            administrator: true,
        };
        seed.users.push(user);
        assert_eq!(seed.meta_data().to_string(), r#"{"instance-id":"1e3","local-hostname":"no"}"#);
        let data = seed.user_data().unwrap();
        assert_eq!(data["users"][0]["name"], "null");
        assert_eq!(data["users"][0]["ssh_authorized_keys"][0], "ssh-ed25519 AAAAC3Nz a: b # c");
        assert_eq!(data["users"][0]["lock_passwd"], true);
    }

    #[test]
    fn networks() {
        let mut seed = seed();
        assert_eq!(seed.network_config().unwrap().unwrap()["network"]["config"], "disabled");
        seed.network = Network::Dhcp;
        assert!(seed.network_config().unwrap().is_none());
        let fixed = Fixed {
            interface: "52:54:00:00:00:01".parse().unwrap(),
            addresses: vec![("10.0.0.2".parse().unwrap(), 24)],
            gateway: Some("10.0.0.1".parse().unwrap()),
            name_servers: vec!["10.0.0.1".parse().unwrap()],
        };
        seed.network = Network::Fixed(fixed.clone());
        let config = seed.network_config().unwrap().unwrap();
        assert_eq!(config["ethernets"]["eth0"]["addresses"][0], "10.0.0.2/24");
        assert_eq!(config["ethernets"]["eth0"]["routes"][0]["via"], "10.0.0.1");
        let addresses = vec![("10.0.0.2".parse().unwrap(), 33)];
        seed.network = Network::Fixed(Fixed { addresses, ..fixed });
        assert!(seed.iso().is_err());
    }

    #[test]
    fn an_agent_comes_as_a_file_beside_the_documents() {
        let seed = Seed { agent: Some(b"\x7fELF agent".to_vec()), ..seed().completing() };
        let iso = seed.iso().unwrap();
        let text = String::from_utf8_lossy(&iso);
        assert!(text.contains("TWIN-GUEST.;1") && text.contains("\x7fELF agent"));
        let data = seed.user_data().unwrap();
        assert_eq!(data["write_files"].as_array().unwrap().len(), 2);
        assert!(data["packages"].as_array().unwrap().contains(&json!("qemu-guest-agent")));
    }

    #[test]
    fn what_no_reader_would_take_is_refused() {
        for command in [vec![], vec!["a\0b".to_owned()], vec!["\u{7f}".to_owned()]] {
            let mut seed = seed();
            seed.commands.push(command);
            assert!(seed.iso().is_err());
        }
        let mut seed = seed();
        let content = vec![0; 2 << 20];
        seed.files.push(GuestFile { path: "/x".parse().unwrap(), content, mode: 0o600 });
        assert!(seed.iso().is_err());
    }

    proptest! {
        #[test]
        fn commands_arrive_as_they_are(words in prop::collection::vec("[ -~\n\t]{0,20}", 1..5)) {
            let mut seed = seed();
            seed.commands.push(words.clone());
            let text = document("#cloud-config\n", &seed.user_data().unwrap()).unwrap();
            let text = String::from_utf8(text).unwrap();
            // One line of comment, one of JSON: nothing that was given ends a line.
            prop_assert_eq!(text.lines().count(), 2);
            let back: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
            prop_assert_eq!(&back["runcmd"][0], &json!(words));
        }
    }
}
