//! One fault at a time, and how many requests it costs.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use sluice_kubeapi::apiserver::{Config, Environment, Resource as Watched, Timing};
use sluice_testbed::apiserver::{Apiserver, Expiry, Failure, Resource, Target, Verb};

use crate::access::all_well;
use crate::canned::{Canned, EMPTY, QUIET};
use crate::cluster::{
    Followed, NODE, by_kubeconfig, config, held, plain, service, soon, start, timing, until,
};

/// Followed, with its watch on Services open.
async fn watched(server: &Apiserver, timing: Timing) -> Followed {
    let mut followed = Followed::new(Config { timing, ..config(server) });
    followed.next().await;
    until(server, |counters| counters.open_watches(Resource::Services) == 1).await;
    followed
}

fn lists(server: &Apiserver) -> u64 {
    server.counters().borrow().requests(Verb::List, Resource::Services)
}

#[tokio::test]
async fn a_watch_that_is_cut_or_closed_goes_on_where_it_was() {
    for http2 in [true, false] {
        let builder = Apiserver::builder().token("t");
        let server = start(if http2 { builder } else { builder.http1_only() }).await;
        let (_kubeconfig, config) = by_kubeconfig(&server);
        let mut followed = Followed::new(config);
        followed.next().await;
        for (i, fault) in (0..).zip(["cut", "goaway", "close", "mid-event", "connections"]) {
            until(&server, |counters| counters.open_watches(Resource::Services) == 1).await;
            match fault {
                "cut" => server.faults().cut_watches(),
                // The watch goes on where it is, and the next one begins elsewhere.
                "goaway" => server.end_connections(),
                "close" => server.faults().close_watches(),
                "mid-event" => server.faults().cut_next_event(Target::resource(Resource::Services), 30),
                _ => server.drop_connections(),
            }
            server.create(Resource::Services, service(&format!("s{i}"))).unwrap();
            assert_eq!(followed.next().await, [format!("+Service default/s{i}")], "{fault}");
        }
        assert_eq!(lists(&server), 1);
    }
}

#[tokio::test]
async fn after_410_in_either_form_it_lists_and_finds_what_is_gone() {
    for expiry in [Expiry::Event, Expiry::Status] {
        let server = plain().await;
        server.create(Resource::Services, service("a")).unwrap();
        let mut followed = watched(&server, timing()).await;
        server.faults().expire_as(expiry);
        server.stop().await.unwrap();
        server.delete(Resource::Services, "default", "a").unwrap();
        server.create(Resource::Services, service("b")).unwrap();
        server.compact();
        server.start_again().unwrap();
        followed.until_like(&server).await;
        assert_eq!(lists(&server), 2);
        assert_eq!(followed.health().of(Watched::Services).lists(), 2);
    }
}

#[tokio::test]
async fn bookmarks_keep_a_quiet_watch_from_expiring() {
    let server = start(Apiserver::builder().plain_http().history(4)).await;
    let mut followed = watched(&server, timing()).await;
    let health = std::sync::Arc::clone(followed.health());
    for i in 0..20 {
        let namespace = serde_json::json!({ "metadata": { "name": format!("n{i}") } });
        server.create(Resource::Namespaces, namespace).unwrap();
        if i % 3 == 0 {
            let contacts = || health.of(Watched::Services).contacts();
            let before = contacts();
            server.send_bookmarks();
            soon(async {
                while contacts() == before {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }
    server.faults().close_watches();
    until(&server, |counters| counters.requests(Verb::Watch, Resource::Services) > 1).await;
    server.create(Resource::Services, service("a")).unwrap();
    followed.until_like(&server).await;
    assert_eq!(lists(&server), 1);
}

/// The shortest time that so many attempts in a row can take.
fn shortest(timing: &Timing, attempts: u64) -> Duration {
    let mut delay = timing.backoff_min;
    let mut total = Duration::ZERO;
    for _ in 1..attempts {
        total += delay;
        delay = (delay * 2).min(timing.backoff_max);
    }
    total
}

#[tokio::test]
async fn attempts_are_bounded_while_the_server_is_down_or_broken() {
    let timing =
        Timing { backoff_min: Duration::from_millis(10), backoff_max: Duration::from_millis(80), ..timing() };
    for fault in ["down", "503", "429", "garbage", "disconnect", "forbidden", "expires"] {
        let server = plain().await;
        let began = Instant::now();
        let failing = |failure| server.faults().fail(Target::ANY, failure, usize::MAX);
        match fault {
            "down" => server.stop().await.unwrap(),
            "503" => failing(Failure::Unavailable),
            "429" => failing(Failure::TooManyRequests { retry_after: 0 }),
            "garbage" => failing(Failure::Garbage),
            "disconnect" => failing(Failure::Disconnect),
            "forbidden" => failing(Failure::Forbidden),
            _ => server.faults().expire_next_watches(usize::MAX),
        }
        let followed = Followed::new(Config { timing: timing.clone(), ..config(&server) });
        let requests = || followed.health().of(Watched::Services).requests();
        soon(async {
            while requests() < 20 {
                tokio::time::sleep(timing.backoff_min).await;
            }
        })
        .await;
        // An expired watch costs two requests: the watch and a list.
        let attempts = if fault == "expires" { requests() / 2 } else { requests() };
        let took = began.elapsed();
        assert!(took >= shortest(&timing, attempts), "{fault}: {attempts} attempts in {took:?}");
    }
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_not_started_over_and_over() {
    let timing =
        Timing { backoff_min: Duration::from_millis(10), backoff_max: Duration::from_millis(80), ..timing() };
    let canned = Canned::start(|request| {
        if request.contains("watch=true") {
            return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned();
        }
        EMPTY.to_owned()
    })
    .await;
    let began = Instant::now();
    let mut followed = Followed::canned(&canned, timing.clone());
    assert_eq!(followed.next().await, [""; 0]);
    let restarts = || followed.health().of(Watched::Services).watch_restarts();
    soon(async {
        while restarts() < 12 {
            tokio::time::sleep(timing.backoff_min).await;
        }
    })
    .await;
    assert!(began.elapsed() >= shortest(&timing, restarts()));
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let server = plain().await;
    let began = Instant::now();
    let services = Target::verb(Verb::List).of(Resource::Services);
    server.faults().fail(services, Failure::TooManyRequests { retry_after: 1 }, 1);
    let mut followed = Followed::new(config(&server));
    followed.next().await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(lists(&server), 2);
}

#[tokio::test]
async fn a_page_that_fails_is_asked_for_again_and_no_other() {
    let page = |names: [&str; 2], next: &str| {
        let items = names.map(|name| {
            let mut service = service(name);
            service["spec"]["clusterIP"] = json!("10.96.0.1");
            service
        });
        let list = json!({ "metadata": { "resourceVersion": "1", "continue": next }, "items": items });
        let body = list.to_string();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let failures = [
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    ];
    let times = AtomicUsize::new(0);
    let canned = Canned::start(move |request| {
        if request.contains("watch=true") {
            QUIET.to_owned()
        } else if !request.contains("/services?") {
            EMPTY.to_owned()
        } else if !request.contains("continue=") {
            page(["a", "b"], "more")
        } else {
            let failure = failures.get(times.fetch_add(1, Relaxed));
            failure.map_or_else(|| page(["c", "d"], ""), |failure| (*failure).to_owned())
        }
    })
    .await;
    let timing = Timing { page: 2, ..timing() };
    let mut followed = Followed::canned(&canned, timing);
    followed.next().await;
    assert_eq!(followed.names(), ["a", "b", "c", "d"].map(|name| format!("Service default/{name}")));
    let requests = canned.requests();
    let lists = requests.iter().filter(|line| line.contains("/services?") && !line.contains("watch="));
    let (next, first): (Vec<_>, Vec<_>) = lists.partition(|line| line.contains("continue=more"));
    assert_eq!((first.len(), next.len()), (1, 4), "{requests:#?}");
}

#[tokio::test]
async fn a_page_that_always_fails_is_not_asked_for_for_ever() {
    let times = AtomicUsize::new(0);
    let canned = Canned::start(move |request| {
        if request.contains("watch=true") {
            return QUIET.to_owned();
        } else if request.contains("continue=") {
            return "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned();
        } else if !request.contains("/services?") || times.fetch_add(1, Relaxed) > 0 {
            return EMPTY.to_owned();
        }
        let body =
            json!({ "metadata": { "resourceVersion": "1", "continue": "more" }, "items": [] }).to_string();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    })
    .await;
    let timing = Timing { backoff_max: Duration::from_millis(10), ..timing() };
    let mut followed = Followed::canned(&canned, timing);
    assert_eq!(followed.next().await, [""; 0], "there is nothing before the second attempt");
    let requests = canned.requests();
    let lists = requests.iter().filter(|line| line.contains("/services?") && !line.contains("watch="));
    let (next, first): (Vec<_>, Vec<_>) = lists.partition(|line| line.contains("continue="));
    assert_eq!((first.len(), next.len()), (2, 11), "{requests:#?}");
}

#[tokio::test]
async fn an_apiserver_that_knows_no_fields_of_services_is_one_of_an_older_version() {
    let server = start(Apiserver::builder().plain_http().no_service_fields()).await;
    let headless = |name: &str| {
        let mut service = service(name);
        service["spec"]["clusterIP"] = json!("None");
        service
    };
    server.create(Resource::Services, service("a")).unwrap();
    server.create(Resource::Services, headless("headless")).unwrap();
    let mut followed = watched(&server, timing()).await;
    assert!(followed.names().contains(&"Service default/a".to_owned()));
    assert_eq!(followed.objects, held(&server), "and not the headless one");
    assert_eq!(lists(&server), 2, "with the field, and without it");
    let services = followed.health().of(Watched::Services);
    assert_eq!((services.errors(), followed.health().reasons()), (0, vec![]), "nothing is wrong with it");
    // It goes on so.
    server.create(Resource::Services, headless("another")).unwrap();
    server.create(Resource::Services, service("b")).unwrap();
    assert_eq!(followed.next().await, ["+Service default/b"]);
    let watches = Target::verb(Verb::Watch).of(Resource::Services);
    server.faults().fail(watches, Failure::Expired, 1);
    server.faults().close_watches();
    until(&server, |counters| counters.requests(Verb::List, Resource::Services) >= 3).await;
    server.delete(Resource::Services, "default", "a").unwrap();
    followed.until_like(&server).await;
    assert_eq!(lists(&server), 3);
}

/// An apiserver's 400.
fn bad_request(message: &str) -> String {
    let body = json!({ "kind": "Status", "message": message, "code": 400 }).to_string();
    format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Requests for Services of one verb: with the field, and without it.
fn with_and_without_field(canned: &Canned, is_watch: bool) -> (usize, usize) {
    let requests = canned.requests();
    let of = requests.iter().filter(|line| line.contains("/services?"));
    let of = of.filter(|line| line.contains("watch=true") == is_watch);
    let (with, without): (Vec<_>, Vec<_>) = of.partition(|line| line.contains("fieldSelector="));
    (with.len(), without.len())
}

#[tokio::test]
async fn an_older_apiserver_behind_a_newer_ones_address_is_watched_without_the_field() {
    // As Kubernetes 1.30 has it.
    const OLDER: &str =
        "\"spec.clusterIP\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"";
    let canned = Canned::start(|request| match request.contains("watch=true") {
        true if request.contains("/services?") && request.contains("fieldSelector=") => bad_request(OLDER),
        true => QUIET.to_owned(),
        false => EMPTY.to_owned(),
    })
    .await;
    let mut followed = Followed::canned(&canned, timing());
    followed.next().await;
    soon(async {
        while with_and_without_field(&canned, true).1 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(with_and_without_field(&canned, true), (1, 1));
    assert_eq!(with_and_without_field(&canned, false), (1, 0), "nothing is listed for it");
    assert_eq!(followed.health().reasons(), [], "nothing is wrong with it");
}

#[tokio::test]
async fn a_bad_request_that_is_not_about_the_field_leaves_it_as_it_is() {
    let times = AtomicUsize::new(0);
    let canned = Canned::start(move |request| {
        if request.contains("watch=true") {
            return QUIET.to_owned();
        } else if !request.contains("/services?") {
            return EMPTY.to_owned();
        }
        match times.fetch_add(1, Relaxed) {
            0 => bad_request("the server could not understand the request"),
            1 => {
                let body = json!({ "metadata": { "resourceVersion": "1", "continue": "more" } }).to_string();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
            2 => bad_request("continue key is not valid: unexpected end of JSON input"),
            _ => EMPTY.to_owned(),
        }
    })
    .await;
    let mut followed = Followed::canned(&canned, timing());
    followed.next().await;
    assert_eq!(with_and_without_field(&canned, false), (4, 0));
}

#[tokio::test]
async fn a_cluster_without_service_cidrs_is_one_of_an_older_version() {
    let canned = Canned::start(|request| {
        if request.contains("servicecidrs") {
            NOT_FOUND.to_owned()
        } else if request.contains("watch=true") {
            QUIET.to_owned()
        } else {
            EMPTY.to_owned()
        }
    })
    .await;
    let mut followed = Followed::canned(&canned, timing());
    assert_eq!(followed.next().await, [""; 0]);
    assert_eq!(followed.health().reasons(), []);
    let asked = |part: &str| canned.requests().iter().filter(|request| request.contains(part)).count();
    assert_eq!(asked("servicecidrs"), 1);
}

const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_failure_is_over_once_it_is_known_that_there_are_no_service_cidrs() {
    let times = AtomicUsize::new(0);
    let canned = Canned::start(move |request| {
        if request.contains("servicecidrs") {
            match times.fetch_add(1, Relaxed) {
                0 => "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_owned(),
                _ => NOT_FOUND.to_owned(),
            }
        } else if request.contains("watch=true") {
            QUIET.to_owned()
        } else {
            EMPTY.to_owned()
        }
    })
    .await;
    let mut followed = Followed::canned(&canned, timing());
    followed.next().await;
    all_well(&followed).await;
    assert_eq!(followed.health().of(Watched::ServiceCidrs).errors(), 1);
}

#[tokio::test]
async fn service_cidrs_are_gone_after_several_answers_in_a_row_that_there_are_none() {
    let list = |names: &[&str]| {
        let item = |name| json!({ "metadata": { "name": name }, "spec": { "cidrs": ["10.96.0.0/16"] } });
        let items: Vec<_> = names.iter().map(item).collect();
        let body = json!({ "metadata": { "resourceVersion": "1" }, "items": items }).to_string();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let times = AtomicUsize::new(0);
    let canned = Canned::start(move |request| {
        match (request.contains("servicecidrs"), request.contains("watch=true")) {
            (true, true) => NOT_FOUND.to_owned(),
            (true, false) => match times.fetch_add(1, Relaxed) {
                0 => list(&["a"]),
                4 => list(&["a", "b"]),
                _ => NOT_FOUND.to_owned(),
            },
            (false, true) => QUIET.to_owned(),
            (false, false) => EMPTY.to_owned(),
        }
    })
    .await;
    let timing = Timing { backoff_max: Duration::from_millis(10), ..timing() };
    let mut followed = Followed::canned(&canned, timing);
    assert_eq!(followed.next().await, ["+ServiceCIDR a"]);
    // Three that know nothing of it take nothing away.
    assert_eq!(followed.next().await, ["+ServiceCIDR a", "+ServiceCIDR b"]);
    followed.until(|objects| objects.is_empty()).await;
    all_well(&followed).await;
    let is_list = |line: &&String| line.contains("servicecidrs") && !line.contains("watch=true");
    assert_eq!(canned.requests().iter().filter(is_list).count(), 5 + 10);
}

#[tokio::test]
async fn requests_have_the_selectors_of_a_proxy_and_ask_for_pages_and_bookmarks() {
    let canned =
        Canned::start(
            |request| {
                if request.contains("watch=true") { QUIET.to_owned() } else { EMPTY.to_owned() }
            },
        )
        .await;
    let masters = vec![format!("http://{}/base", canned.address)];
    let config = Config { masters, timing: timing(), ..Config::new(NODE, Environment::default()) };
    let mut followed = Followed::new(config);
    followed.next().await;
    soon(async {
        while canned.requests().len() < 8 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let requests = canned.requests();
    let services = "/base/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
                    &fieldSelector=spec.clusterIP%21%3DNone";
    let slices =
        "/base/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless";
    let node = "/base/api/v1/nodes?fieldSelector=metadata.name%3Dnode-1";
    let cidrs = "/base/apis/networking.k8s.io/v1/servicecidrs?";
    for path in [services, slices, node, cidrs] {
        let of =
            |rest: &str| requests.iter().filter(|line| line.contains(path) && line.contains(rest)).count();
        assert_eq!((of("limit=500 HTTP"), of("watch=true")), (1, 1), "{path} in {requests:#?}");
        assert_eq!(of("&allowWatchBookmarks=true&resourceVersion=1&timeoutSeconds="), 1);
    }
}
