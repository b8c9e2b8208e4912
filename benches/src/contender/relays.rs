//! Other relays: with configurations in the site's directory, in the foreground, without touching the
//! system's own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use sluice_testbed::lab::Process;

use crate::site::{self, Site, TCP, UDP, cpus};

/// haproxy in TCP mode: one thread per CPU, splicing when haproxy considers it worthwhile. It needs five
/// descriptors for each connection, and does not start if it cannot have them.
pub(super) fn haproxy(site: &Site, ip: Ipv4Addr) -> Result<Process> {
    let mut config = format!(
        "global\n  nbthread {}\n  maxconn 2000\n\
         defaults\n  mode tcp\n  option splice-auto\n\
         \x20 timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n",
        cpus()
    );
    for port in TCP {
        let server = site.server().v4;
        config.push_str(&format!("listen p{port}\n  bind {ip}:{port}\n  server s {server}:{port}\n"));
    }
    let path = site.directory().join("haproxy.conf");
    fs::write(&path, config)?;
    Ok(site.lab.node().spawn(Command::new("haproxy").arg("-db").arg("-f").arg(path))?)
}

/// nginx with the stream module: TCP and UDP, one worker process per CPU.
pub(super) fn nginx(site: &Site, ip: Ipv4Addr) -> Result<Process> {
    let shown = site.directory().display();
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() { format!("load_module {};\n", module.display()) } else { String::new() };
    let mut config = format!(
        "{load}user root;\nworker_processes {};\nworker_rlimit_nofile 16384;\npid {shown}/relay.pid;\nerror_log stderr error;\n\
         events {{ worker_connections 8000; }}\nstream {{\n",
        cpus()
    );
    let server = site.server().v4;
    // A client's datagrams must reach the worker that has its session.
    let listens = TCP
        .map(|port| (port, "reuseport backlog=4096"))
        .into_iter()
        .chain(UDP.map(|port| (port, "udp reuseport")));
    for (port, options) in listens {
        config.push_str(&format!(
            "server {{ listen {ip}:{port} {options}; proxy_pass {server}:{port}; proxy_timeout 1h; }}\n"
        ));
    }
    config.push_str("}\n");
    let path = site.directory().join("relay.conf");
    fs::write(&path, config)?;
    Ok(site.lab.node().spawn(&site::nginx(&path, site.directory()))?)
}

/// One realm process for each port, with options that realm's own program and `benches/compare/realm` share.
pub(super) fn realm(site: &Site, program: &Path, ip: Ipv4Addr) -> Result<Vec<Process>> {
    let server = site.server().v4;
    let udp: &[&str] = &["-u", "-t"];
    let ports = TCP.map(|port| (port, [].as_slice())).into_iter().chain(UDP.map(|port| (port, udp)));
    let processes = ports.map(|(port, options)| {
        let mut command = Command::new(program);
        command.args(options).args(["-l", &format!("{ip}:{port}"), "-r", &format!("{server}:{port}")]);
        Ok(site.lab.node().spawn(&command)?)
    });
    processes.collect()
}
