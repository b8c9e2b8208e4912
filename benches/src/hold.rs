//! A client that holds many idle connections or flows. It is a process of its own, because it needs
//! descriptors for all of them.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_model::Protocol;
use sluice_testbed::lab::{Host, Process, WHO};

use crate::itself;

/// The first argument that makes this program such a client.
pub(crate) const WORD: &str = "hold";

/// How long a server may take to answer before no more are opened.
const ANSWER: Duration = Duration::from_secs(2);

/// How long opening all of them may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running client.
pub struct Hold {
    /// Its process, which ends with it.
    pub process: Process,
    /// The number of connections or flows that it holds.
    pub count: usize,
}

impl Hold {
    /// Opens up to `count` connections or flows from a host to a server of the lab, and holds them.
    ///
    /// # Errors
    /// It cannot be started. Opening fewer than `count` is not an error.
    pub fn start(from: &Host, protocol: Protocol, to: SocketAddr, count: usize) -> Result<Self> {
        let mut command = itself::program()?;
        command.args([WORD, &protocol.to_string(), &to.to_string(), &count.to_string()]);
        let process = from.spawn(&command)?;
        let line = process.wait_for("holds ", PATIENCE)?;
        let count = line.split(' ').nth(1).and_then(|count| count.parse().ok());
        Ok(Self { process, count: count.context("how many it holds")? })
    }
}

/// Runs as such a client.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    match hold(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The starting process reads this.
            let _ = writeln!(io::stdout(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold(arguments: &[String]) -> Result<()> {
    let [protocol, to, count] = arguments else { anyhow::bail!("protocol, address, count") };
    let (to, count): (SocketAddr, usize) = (to.parse()?, count.parse()?);
    let (mut streams, mut sockets, mut why) = (Vec::new(), Vec::new(), None);
    for _ in 0..count {
        let opened = if *protocol == Protocol::Tcp.to_string() {
            connect(to).map(|stream| streams.push(stream))
        } else {
            ask(to).map(|socket| sockets.push(socket))
        };
        if let Err(error) = opened {
            why = Some(error);
            break;
        }
    }
    writeln!(io::stdout(), "holds {} {why:?}", streams.len() + sockets.len())?;
    loop {
        std::thread::park();
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut reader = BufReader::with_capacity(128, stream);
    if reader.read_line(&mut String::new())? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(reader.into_inner())
}

fn ask(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(WHO)?;
    socket.recv(&mut [0; 128])?;
    Ok(socket)
}
