//! A client of a quiet Service, which sends few requests and needs quick answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use sluice_testbed::lab::{Host, WHO};

/// The timeout of a request.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause after each round of requests, so that the client does not take CPU time from others.
const REST: Duration = Duration::from_millis(1);

/// The kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// A byte there and back on an open TCP connection.
    Exchange,
    /// A TCP connection, and the server's first line on it.
    Connection,
    /// A datagram from its own port and the answer, like a resolver's query.
    Datagram,
}

impl Question {
    /// All kinds, in the order of the table.
    pub const ALL: [Self; 3] = [Self::Exchange, Self::Connection, Self::Datagram];

    /// The title in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Exchange => "TCP exchange",
            Self::Connection => "new TCP connection",
            Self::Datagram => "UDP question",
        }
    }
}

/// The distribution of answer times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers {
    /// The median in microseconds.
    pub p50: f64,
    /// The 99th percentile in microseconds.
    pub p99: f64,
    /// The maximum in microseconds.
    pub max: f64,
    /// The number of failed requests.
    pub failed: usize,
}

impl Answers {
    fn of(mut times: Vec<Duration>, failed: usize) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        Self { p50: at(50), p99: at(99), max: at(100), failed }
    }
}

/// Sends requests of all kinds in turn for some time.
///
/// # Errors
/// Not even one connection can be established.
pub(super) fn ask(
    from: &Host,
    to: SocketAddr,
    time: Duration,
    has_udp: bool,
) -> io::Result<[Option<Answers>; 3]> {
    from.ns.run(|| {
        let kinds = if has_udp { &Question::ALL[..] } else { &Question::ALL[..2] };
        let mut times = [const { Vec::new() }; 3];
        let mut failed = [0; 3];
        let mut open = connect(to)?;
        let end = Instant::now() + time;
        while Instant::now() < end {
            for (index, kind) in kinds.iter().enumerate() {
                let begin = Instant::now();
                let answered = match kind {
                    Question::Exchange => exchange(&mut open),
                    Question::Connection => connect(to).map(drop),
                    Question::Datagram => datagram(to),
                };
                match answered {
                    Ok(()) => times[index].push(begin.elapsed()),
                    Err(_) => {
                        failed[index] += 1;
                        if *kind == Question::Exchange
                            && let Ok(another) = connect(to)
                        {
                            open = another;
                        }
                    }
                }
            }
            std::thread::sleep(REST);
        }
        let mut asked = times.into_iter().zip(failed).zip(Question::ALL);
        Ok(std::array::from_fn(|_| {
            let ((times, failed), kind) = asked.next()?;
            kinds.contains(&kind).then(|| Answers::of(times, failed))
        }))
    })
}

/// Connects, and waits for the server's first line.
fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(128, stream);
    if reader.read_line(&mut String::new())? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(reader.into_inner())
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn datagram(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(WHO)?;
    socket.recv(&mut [0; 128]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_answered() {
        let answers = Answers::of((1..=200).map(Duration::from_micros).collect(), 3);
        assert!((answers.p50 - 101.0).abs() < 0.1 && (answers.p99 - 199.0).abs() < 0.1, "{answers:?}");
        assert!((answers.max - 200.0).abs() < 0.1 && answers.failed == 3, "{answers:?}");
        assert_eq!(Answers::of(vec![], 1), Answers { failed: 1, ..Answers::default() });
    }
}
