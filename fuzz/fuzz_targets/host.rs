#![no_main]

safetytwin_fuzz::targets! {
    host:
    host_accounts,
    host_apk,
    host_docker,
    host_docker_socket,
    host_dpkg,
    host_files,
    host_image_archive,
    host_journal,
    host_kernel,
    host_load,
    host_mounts,
    host_nvidia,
    host_platform,
    host_processes,
    host_rpm,
    host_sockets,
    host_unit,
    host_workload,
}
