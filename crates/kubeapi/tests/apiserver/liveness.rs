//! A connection that is quiet, and one that is dead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sluice_kubeapi::apiserver::{Config, Resource as Watched, Timing};
use sluice_testbed::apiserver::{Apiserver, Resource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::access::reason;
use crate::canned::{Canned, EMPTY, QUIET};
use crate::cluster::{Followed, by_kubeconfig, service, soon, start, timing};
use crate::still::still;

/// As client-go has it: 45 s at most.
#[test]
fn a_dead_apiserver_is_noticed_within_45_seconds() {
    let Timing { keep_alive, keep_alive_answer, answer, .. } = Timing::default();
    assert_eq!((keep_alive.as_secs(), keep_alive_answer.as_secs()), (30, 15));
    assert!(answer.as_secs() <= 45, "a list that does not come");
}

/// Over HTTP/1.1, for three times as long as it takes to notice that an apiserver is gone.
#[tokio::test]
async fn silence_is_no_trouble() {
    let canned =
        Canned::start(
            |request| {
                if request.contains("watch=true") { QUIET.to_owned() } else { EMPTY.to_owned() }
            },
        )
        .await;
    let timing = Timing { keep_alive: Duration::from_secs(1), keep_alive_answer: Duration::ZERO, ..timing() };
    let silence = 3 * timing.keep_alive;
    let mut followed = Followed::canned(&canned, timing);
    followed.next().await;
    soon(async {
        while canned.requests().len() < 8 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let contact =
        || Watched::ALWAYS.map(|resource| followed.health().of(resource).contacts()).iter().sum::<u64>();
    soon(async {
        // Each list, the start of each watch, and the moment that it has lived.
        while contact() < 12 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    tokio::time::sleep(silence).await;
    assert_eq!(canned.requests().len(), 8, "{:#?}", canned.requests());
    assert_eq!(followed.health().reasons(), []);
    for resource in Watched::ALWAYS {
        let health = followed.health().of(resource);
        assert_eq!((health.errors(), health.watch_restarts(), health.requests()), (0, 0, 2), "{resource}");
    }
    assert!(followed.health().last_contact().unwrap() <= silence / 3, "open watches are contact");
}

/// All that is known of a resource before its watch says anything: a page, the list, and that the watch is open.
const CONTACTS_OPEN: u64 = 3;

/// Whether all lists are read and all watches open.
fn is_open(followed: &Followed) -> bool {
    Watched::ALWAYS.iter().all(|&resource| followed.health().of(resource).contacts() >= CONTACTS_OPEN)
}

/// An hour by the clock that the source goes by. Nobody sends anything meanwhile, so that it may go on by itself.
#[tokio::test(start_paused = true)]
async fn a_watch_may_be_silent_for_an_hour_if_that_is_what_it_was_asked_to_last() {
    const HOUR: Duration = Duration::from_secs(3600);
    let canned =
        Canned::start(
            |request| {
                if request.contains("watch=true") { QUIET.to_owned() } else { EMPTY.to_owned() }
            },
        )
        .await;
    let timing = Timing { watch: HOUR, ..Timing::default() };
    let answer = timing.answer;
    let followed = Followed::canned(&canned, timing);
    still(|| is_open(&followed)).await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(canned.requests().len(), 8, "{:#?}", canned.requests());
    assert_eq!(followed.health().reasons(), []);
    let of = |resource| followed.health().of(resource);
    for resource in Watched::ALWAYS {
        let health = of(resource);
        assert_eq!((health.errors(), health.watch_restarts(), health.requests()), (0, 0, 2), "{resource}");
    }
    // An apiserver would have ended them by now: up to twice as long, and what it takes to say so.
    tokio::time::sleep(HOUR + answer).await;
    still(|| Watched::ALWAYS.iter().all(|&resource| of(resource).watch_restarts() > 0)).await;
}

/// Forwards connections, until it swallows what comes: the kernels at both ends go on acknowledging, and nothing arrives.
struct Swallower {
    address: SocketAddr,
    swallows: watch::Sender<bool>,
    /// Bytes from the client.
    asked: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Swallower {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let swallows = watch::Sender::new(false);
        let (asked, told) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (switch, bytes) = (swallows.subscribe(), Arc::clone(&asked));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(to).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                pipes.spawn(pipe(from_client, to_server, switch.clone(), Arc::clone(&bytes)));
                pipes.spawn(pipe(from_server, to_client, switch.clone(), Arc::clone(&told)));
            }
        });
        Self { address, swallows, asked, _tasks: tasks }
    }
}

async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    swallows: watch::Receiver<bool>,
    bytes: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        bytes.fetch_add(read as u64, Relaxed);
        if !*swallows.borrow() && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Over HTTP/2, through a forwarder: the configuration, and what has to be kept for it.
async fn through(server: &Apiserver, timing: Timing) -> (Swallower, tempfile::NamedTempFile, Followed) {
    let swallower = Swallower::start(server.address()).await;
    let (kubeconfig, config) = by_kubeconfig(server);
    let masters = vec![format!("https://{}", swallower.address)];
    let mut followed = Followed::new(Config { timing, masters, ..config });
    followed.next().await;
    let open = |server: &Apiserver| server.counters().borrow().open_watches(Resource::Services) == 1;
    soon(async {
        while !open(server) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    (swallower, kubeconfig, followed)
}

#[tokio::test]
async fn an_apiserver_that_answers_pings_may_be_silent() {
    let server = start(Apiserver::builder()).await;
    let timing = Timing {
        keep_alive: Duration::from_millis(20),
        keep_alive_answer: Duration::from_secs(30),
        ..timing()
    };
    let (swallower, _kubeconfig, followed) = through(&server, timing).await;
    let mut asked = 0;
    // That it is asked, again and again, shows in what passes.
    for _ in 0..20 {
        soon(async {
            while swallower.asked.load(Relaxed) == asked {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        asked = swallower.asked.load(Relaxed);
    }
    for resource in Watched::ALWAYS {
        let health = followed.health().of(resource);
        assert_eq!((health.errors(), health.watch_restarts(), health.lists()), (0, 0, 1), "{resource}");
    }
    assert_eq!(followed.health().reasons(), []);
}

/// By the clock that the source goes by: nothing that is sent meanwhile arrives, so that it may go on by itself.
#[tokio::test]
async fn an_apiserver_that_is_gone_is_noticed_within_45_seconds_though_the_network_acknowledges() {
    let server = start(Apiserver::builder()).await;
    // That it is noticed shows before the next attempt, of which nothing would arrive either.
    let look = Duration::from_millis(100);
    let timing = Timing { backoff_min: 4 * look, ..timing() };
    let most = timing.keep_alive + timing.keep_alive_answer;
    let (swallower, _kubeconfig, mut followed) = through(&server, timing).await;
    soon(async {
        while !is_open(&followed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    swallower.swallows.send_replace(true);
    server.create(Resource::Services, service("a")).unwrap();
    tokio::time::pause();
    let began = Instant::now();
    while followed.health().reasons().is_empty() {
        assert!(began.elapsed() <= most, "{:?}", began.elapsed());
        tokio::time::sleep(look).await;
    }
    tokio::time::resume();
    assert!(began.elapsed() >= most / 2, "after {:?}: it was given no time to answer", began.elapsed());
    swallower.swallows.send_replace(false);
    reason(&followed, "cannot be reached").await;
    assert!(followed.health().of(Watched::Services).errors() > 0);
    followed.until_like(&server).await;
}
