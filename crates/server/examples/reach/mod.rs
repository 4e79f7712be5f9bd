//! How the examples reach a machine at a port of this one's loopback.

use server::twins::ansible::Reach;
use std::error::Error;
use std::net::Ipv4Addr;

/// Of the words NAME PORT LOGIN KNOWN_HOSTS.
pub(crate) fn of_words(
    [name, port, login, known_hosts]: [&str; 4],
) -> Result<Reach, Box<dyn Error>> {
    Ok(Reach {
        name: name.parse()?,
        address: Ipv4Addr::LOCALHOST.into(),
        port: port.parse()?,
        user: "root".parse()?,
        login: login.into(),
        known_hosts: known_hosts.into(),
    })
}
