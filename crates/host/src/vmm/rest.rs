//! The HTTP interfaces of cloud-hypervisor and firecracker.

use super::{Error, Monitor, broken, socket, word};
use crate::{Root, unix_http};
use hyper::StatusCode;
use model::load::VmmLoad;
use model::vm::Vmm;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of an answer.
const ANSWER_MAX: usize = 1 << 20;
const MIB: u64 = 1 << 20;

pub(super) async fn cloud_hypervisor(
    root: &Root,
    monitor: &Monitor,
    path: &Path,
) -> Result<VmmLoad, Error> {
    let info = known(root, monitor, path, "/api/v1/vm.info").await?;
    let memory = |name: &str| info.pointer("/config/memory")?.get(name)?.as_u64();
    let zones = info.pointer("/config/memory/zones").and_then(Value::as_array);
    let zones = zones.into_iter().flatten().filter_map(|zone| zone.get("size")?.as_u64());
    let sizes = ["size", "hotplugged_size"].into_iter().filter_map(memory).chain(zones);
    let has_balloon = info.pointer("/config/balloon").is_some_and(Value::is_object);
    let actual = info.get("memory_actual_size").and_then(Value::as_u64);
    let state = info.get("state").and_then(Value::as_str);
    Ok(VmmLoad {
        runs: state.map(|state| state == "Running"),
        status: state.map(word),
        vcpus: info.pointer("/config/cpus/boot_vcpus").and_then(Value::as_u64),
        memory_bytes: sizes.reduce(u64::saturating_add),
        balloon_memory_bytes: actual.filter(|_| has_balloon),
        ..VmmLoad::default()
    })
}

pub(super) async fn firecracker(
    root: &Root,
    monitor: &Monitor,
    path: &Path,
) -> Result<VmmLoad, Error> {
    let instance = known(root, monitor, path, "/").await?;
    let machine = known(root, monitor, path, "/machine-config").await?;
    // Refused where there is no balloon, or where it keeps no statistics.
    let balloon = get(root, monitor, path, "/balloon/statistics").await?;
    let mebibytes =
        |value: &Value, name: &str| Some(value.get(name)?.as_u64()?.saturating_mul(MIB));
    let memory = mebibytes(&machine, "mem_size_mib");
    let taken = balloon.and_then(|balloon| mebibytes(&balloon, "actual_mib"));
    let state = instance.get("state").and_then(Value::as_str);
    Ok(VmmLoad {
        runs: state.map(|state| state == "Running"),
        status: state.map(word),
        vcpus: machine.get("vcpu_count").and_then(Value::as_u64),
        memory_bytes: memory,
        balloon_memory_bytes: memory.zip(taken).map(|(all, taken)| all.saturating_sub(taken)),
        ..VmmLoad::default()
    })
}

/// The socket through which ports of the guest's vsock device are reached.
pub(super) async fn vsock(root: &Root, monitor: &Monitor) -> Result<PathBuf, Error> {
    let path = monitor.sockets.api.as_deref().ok_or(Error::NoSocket(monitor.vmm))?;
    let (question, place) = match monitor.vmm {
        Vmm::CloudHypervisor => ("/api/v1/vm.info", "/config/vsock/socket"),
        Vmm::Firecracker => ("/vm/config", "/vsock/uds_path"),
        other => return Err(Error::NoChannel(other)),
    };
    let answer = known(root, monitor, path, question).await?;
    let place = answer.pointer(place).and_then(Value::as_str);
    place.map(PathBuf::from).ok_or(Error::NoChannel(monitor.vmm))
}

/// The answer to a question that is always answered.
async fn known(
    root: &Root,
    monitor: &Monitor,
    path: &Path,
    question: &str,
) -> Result<Value, Error> {
    get(root, monitor, path, question).await?.ok_or_else(|| {
        let text = format!("GET {question} is refused");
        broken(path, io::Error::new(io::ErrorKind::InvalidData, text))
    })
}

/// The answer to a GET; nothing where it is refused.
async fn get(
    root: &Root,
    monitor: &Monitor,
    path: &Path,
    question: &str,
) -> Result<Option<Value>, Error> {
    let failed = |error: hyper::Error| broken(path, io::Error::other(error));
    let odd = |text: &str| broken(path, io::Error::new(io::ErrorKind::InvalidData, text));
    let stream = socket::connect(root, monitor, path).await?;
    let request = unix_http::request("localhost", question)
        .map_err(|error| broken(path, io::Error::other(error)))?;
    let (answer, mut driver) = unix_http::open(stream, request).await.map_err(failed)?;
    let is_ok = answer.status() == StatusCode::OK;
    let body = unix_http::body(answer.into_body(), &mut driver, ANSWER_MAX).await;
    let body = body.map_err(failed)?.ok_or_else(|| odd("its answer has no end"))?;
    if !is_ok {
        return Ok(None);
    }
    serde_json::from_slice(&body).map(Some).map_err(|_form| odd("its answer is not JSON"))
}
