//! `sluice connections`, as a person runs it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{Agent, PATIENCE, address, backend, free_port, service, slice, until};
use crate::inside::Scene;

/// Adds a UDP Service whose endpoint answers with two bytes; returns its frontend.
fn serve_udp(scene: &Scene, name: &str) -> std::net::SocketAddr {
    let endpoint = UdpSocket::bind((address(), 0)).unwrap();
    let at = endpoint.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((_, client)) = endpoint.recv_from(&mut [0; 64]) {
            let _ = endpoint.send_to(b"ok", client);
        }
    });
    let frontend = free_port(address());
    let service = service(name, frontend).replace("  - port:", "  - protocol: UDP\n    port:");
    let slice = slice(name, &[at]).replace("\n  port:", "\n  protocol: UDP\n  port:");
    scene.write(name, &(service + &slice));
    frontend
}

fn items(list: &Value) -> &Vec<Value> {
    list["items"].as_array().unwrap()
}

#[test]
fn open_connections_are_told_with_their_service_endpoint_state_and_bytes() {
    let scene = Scene::start();
    assert_eq!(scene.ask("connections"), "No such connection is open.\n");
    assert_eq!(scene.ask("connections --service web"), "No such connection is open.\n");
    for unknown in ["nope", "other/web"] {
        let complaint = scene.complaint(&format!("connections --service {unknown}"));
        assert!(complaint.contains("has an address here: it does not exist"), "{complaint}");
    }
    let dns = serve_udp(&scene, "dns");
    let mut sessions: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(scene.frontend).unwrap()).collect();
    for session in &mut sessions {
        session.set_read_timeout(Some(PATIENCE)).unwrap();
        session.read_exact(&mut [0]).unwrap();
    }
    let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
    resolver.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    until("the flow is answered", || {
        resolver.send_to(b"query", dns).unwrap();
        resolver.recv(&mut [0; 8]).is_ok()
    });

    let list = scene.json("connections --sort client");
    assert_eq!((items(&list).len(), &list["matched"]), (4, &4.into()), "{list}");
    let tcp = scene.json("connections --protocol tcp --service default/web");
    let endpoints: Vec<String> = scene.endpoints.iter().map(ToString::to_string).collect();
    for session in &sessions {
        let client = session.local_addr().unwrap().to_string();
        let told = items(&tcp).iter().find(|told| told["client"] == client).unwrap();
        assert_eq!((&told["service"], &told["state"]), (&"web".into(), &"open".into()));
        assert_eq!(told["frontend"], scene.frontend.to_string());
        assert!(endpoints.iter().any(|endpoint| told["endpoint"] == *endpoint), "{told}");
        assert_eq!((&told["bytesToEndpoint"], &told["bytesFromEndpoint"]), (&0.into(), &1.into()));
    }
    let one = scene.json(&format!("connections --endpoint {}", endpoints[0]));
    assert_ne!(items(&one).len(), 0);
    assert!(items(&one).iter().all(|told| told["endpoint"] == endpoints[0]), "{one}");
    let udp = scene.json(&format!("connections --client {}", resolver.local_addr().unwrap()));
    let told = &items(&udp)[0];
    assert_eq!(
        (&told["protocol"], &told["service"], &told["state"]),
        (&"UDP".into(), &"dns".into(), &"answered".into())
    );
    assert!(
        told["bytesToEndpoint"].as_u64().unwrap() >= 5 && told["bytesFromEndpoint"].as_u64().unwrap() >= 2,
        "{told}"
    );

    let few = scene.ask("connections --limit 2 -o wide");
    assert!(few.lines().next().unwrap().ends_with("IDLE   FRONTEND"), "{few}");
    assert!(few.contains("\n2 of 4 are shown: "), "{few}");
    assert!(scene.ask("connections -o yaml").contains("\nmatched: 4\n"));
}

#[test]
fn a_connection_is_named_after_its_service_is_gone_and_until_it_ends() {
    let scene = Scene::start();
    let mut half_closed = TcpStream::connect(scene.frontend).unwrap();
    half_closed.read_exact(&mut [0]).unwrap();
    // Backends close when they have read something, so the last that this one hears is nothing.
    half_closed.shutdown(Shutdown::Write).unwrap();
    until("it ends", || items(&scene.json("connections")).is_empty());

    let mut open = TcpStream::connect(scene.frontend).unwrap();
    open.read_exact(&mut [0]).unwrap();
    // Another Service has its address from now on.
    let manifest = service("other", scene.frontend) + &slice("other", &[backend(3)]);
    scene.write("web", &manifest);
    until("the Service is another one", || scene.ask("services").contains("other"));
    let list = scene.json("connections");
    assert_eq!((items(&list).len(), &items(&list)[0]["service"]), (1, &"web".into()), "{list}");
    open.write_all(b"x").unwrap();
    drop(open);
    until("it ends", || items(&scene.json("connections")).is_empty());
}

#[test]
fn who_watches_is_told_when_a_connection_has_ended_and_what_it_carried() {
    let scene = Scene::start();
    let mut stays = TcpStream::connect(scene.frontend).unwrap();
    let mut goes = TcpStream::connect(scene.frontend).unwrap();
    for session in [&mut stays, &mut goes] {
        session.read_exact(&mut [0]).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(["connections", "--watch", "--interval", "100ms", "--admin-socket"]).arg(scene.socket());
    let mut watching =
        Agent::run_for(command.stdout(Stdio::piped()), |child| Box::new(child.stdout.take().unwrap()));
    let [stays, client] = [&stays, &goes].map(|session| session.local_addr().unwrap().to_string());
    watching.wait_for(&stays);
    watching.wait_for(&client);
    drop(goes);
    let line = watching.wait_for("ENDED");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        (words[0], words[1], words[2], words[4]),
        ("TCP", client.as_str(), "default/web", "ENDED"),
        "{line}"
    );
    assert_eq!(words[6..], ["0", "1"], "{line}");
    // More than one round later.
    let _next = TcpStream::connect(scene.frontend).unwrap();
    until("the next one is told", || {
        watching.heard().iter().filter(|line| line.contains(" open ")).count() >= 3
    });
    let ended = watching.heard().iter().filter(|line| line.contains("ENDED")).count();
    assert_eq!(ended, 1, "{:?}", watching.heard());
}

#[test]
fn what_cannot_be_asked_is_said_by_its_name() {
    let scene = Scene::start();
    for (arguments, complaint) in [
        ("connections --client web", "ADDRESS:PORT"),
        ("connections --limit 0", "--limit"),
        ("connections --sort luck", "possible values: age, idle, bytes, client, service, endpoint"),
        ("connections --protocol sctp", "possible values: tcp, udp"),
    ] {
        let output = crate::inside::command(&scene.socket(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(complaint), "{arguments}: {said}");
    }
}
