//! What the kernel, package managers, the driver's tools, Docker and systemd say of a machine.

mod answers;
mod docker;
mod files;
mod running;

pub use answers::{MadeSigns, host_nvidia, host_unit, host_workload};
pub use docker::{host_docker, host_docker_socket, host_image_archive};
pub use files::{
    host_accounts, host_apk, host_dpkg, host_files, host_mounts, host_platform, host_rpm,
};
pub use running::{host_journal, host_kernel, host_load, host_processes, host_sockets};

use model::Facts;
use model::entity::Entity;

/// What is said of a machine fits into facts, and none of it can steer a terminal by its name.
fn printable<T: Entity>(entities: &[T]) {
    let mut facts = Facts::default();
    for entity in entities {
        facts.put_entity(entity);
    }
    assert!(facts.len() <= entities.len());
}
