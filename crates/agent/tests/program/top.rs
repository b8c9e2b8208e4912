//! `sluice top`, on a terminal and without one.

use std::io::{Read, Write, copy};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Agent, PATIENCE, ask, until};
use crate::inside::Scene;

#[test]
fn without_a_terminal_it_writes_one_table() {
    let scene = Scene::start();
    let mut open = TcpStream::connect(scene.frontend).unwrap();
    open.read_exact(&mut [0]).unwrap();
    let said = scene.ask("top --interval 100ms");
    let web = said.lines().find(|line| line.starts_with("default/web ")).unwrap();
    let words: Vec<&str> = web.split_whitespace().collect();
    assert_eq!(words[1..4], [&format!("{}/TCP", scene.frontend.port()), "1", "0.0"], "{said}");
    assert!(
        said.contains("healthy, 1 Services, 2 endpoints, 1 TCP sessions") && said.contains("workers: "),
        "{said}"
    );
    assert!(scene.ask("top --once --interval 100ms --limit 0").ends_with("TO-CLIENTS/S\n"));
}

#[test]
fn a_terminal_is_drawn_on_sorted_by_key_and_given_back_as_it_was() {
    let scene = Scene::start();
    for end in ["q", "\u{3}", "SIGTERM"] {
        // script(1) runs it on a terminal of its own. Ctrl-C there is a signal to the shell as well, which
        // dash, unlike bash, would not outlive.
        let top = format!(
            "trap : INT; stty -a; sh -c 'echo pid=$$; exec {} top --interval 100ms --admin-socket {}'; stty -a; echo the-end",
            env!("CARGO_BIN_EXE_sluice"),
            scene.socket().display()
        );
        let mut command = Command::new("script");
        command
            .args(["-qec", &top, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut top = Agent::run_for(&mut command, |child| Box::new(child.stdout.take().unwrap()));
        let mut keys = top.child.stdin.take().unwrap();
        let pid = top.wait_for("pid=");
        let pid = pid.trim().rsplit('=').next().unwrap().parse().unwrap();
        top.wait_for("CONNECTIONS/S");
        top.wait_for("default/web");
        // A connection makes it show another line.
        ask(scene.frontend).unwrap();
        keys.write_all(b"o").unwrap();
        until("rates are shown", || {
            let is_busy = |line: &String| {
                let mut words = line.split_whitespace().skip_while(|word| !word.ends_with("default/web"));
                words.nth(3).is_some_and(|rate| rate != "0.0")
            };
            top.heard().iter().any(is_busy) || {
                let _ = ask(scene.frontend);
                false
            }
        });
        match end {
            "SIGTERM" => kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap(),
            key => keys.write_all(key.as_bytes()).unwrap(),
        }
        top.wait_for("the-end");
        let heard = top.heard().join("\n");
        assert!(heard.contains("\u{1b}[?1049h") && heard.contains("\u{1b}[?1049l"), "{heard:?}");
        assert!(heard.rfind("\u{1b}[?25h") > heard.rfind("\u{1b}[?25l"), "the cursor is back");
        let said = |what| heard.lines().filter(move |line| line.contains(what)).collect::<Vec<_>>();
        let (modes, susp) = (said("icanon"), said("susp ="));
        assert!(modes.len() == 2 && modes[0] == modes[1] && susp[0] == susp[1], "{modes:?} {susp:?}");
        assert!(modes[1].split_whitespace().any(|mode| mode == "icanon"), "{modes:?}");
    }
}

/// Hands so many questions on to the agent, and keeps the next one for good. It is told of, with its connection.
fn hanging_after(questions: usize, scene: &Scene) -> (PathBuf, mpsc::Receiver<UnixStream>) {
    let (path, agent) = (scene.socket().with_file_name("hanging.sock"), scene.socket());
    let listener = UnixListener::bind(&path).unwrap();
    let (hangs, hanging) = mpsc::channel();
    thread::spawn(move || {
        for _ in 0..questions {
            let (mut client, mut agent) =
                (listener.accept().unwrap().0, UnixStream::connect(&agent).unwrap());
            let (mut from_client, mut to_agent) = (client.try_clone().unwrap(), agent.try_clone().unwrap());
            thread::spawn(move || {
                let _ = copy(&mut from_client, &mut to_agent);
                let _ = to_agent.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = copy(&mut agent, &mut client);
                let _ = client.shutdown(Shutdown::Write);
            });
        }
        let _ = hangs.send(listener.accept().unwrap().0);
    });
    (path, hanging)
}

#[test]
fn it_can_be_left_while_the_agent_hangs() {
    let scene = Scene::start();
    for end in ["q", "\u{3}"] {
        // Two for each look.
        let (socket, hanging) = hanging_after(4, &scene);
        let top = format!(
            "trap : INT; {} top --interval 100ms --admin-socket {}; echo the-end",
            env!("CARGO_BIN_EXE_sluice"),
            socket.display()
        );
        let mut command = Command::new("script");
        command
            .args(["-qec", &top, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut top = Agent::run_for(&mut command, |child| Box::new(child.stdout.take().unwrap()));
        let mut keys = top.child.stdin.take().unwrap();
        let _unanswered = hanging.recv_timeout(PATIENCE).unwrap();
        // What is asked for by a key is drawn from what is known.
        keys.write_all(b"o").unwrap();
        let is_drawn = |line: &&String| line.contains("CONNECTIONS/S");
        until("it is drawn again", || top.heard().iter().filter(is_drawn).count() == 2);
        keys.write_all(end.as_bytes()).unwrap();
        top.wait_for("the-end");
        std::fs::remove_file(socket).unwrap();
    }
}
