//! The status page as people see it: in a browser, of a real agent with real traffic.

mod chromium;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use self::chromium::Browser;
use crate::common::{Agent, address, ask, backend, free_port, service, slice};

/// What a browser would run if it were taken for markup.
const EVIL: &str = "<img src=x onerror=\"window.pwned=1\">";

/// A client that connects again and again.
struct Traffic(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Traffic {
    fn to(frontend: SocketAddr) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                // While the agent is away there is nobody to connect to.
                let _ = ask(frontend);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self(ends, Some(thread))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

fn agent(directory: &TempDir, metrics: &str) -> (Agent, SocketAddr) {
    let manifests = directory.path().to_str().unwrap();
    let mut agent = Agent::start(&[
        "--manifests",
        manifests,
        "--hostname-override",
        EVIL,
        "--metrics-bind-address",
        metrics,
    ]);
    let address = agent.port("serving metrics");
    (agent, address)
}

/// What the list of Services says.
const ROWS: &str = "document.getElementById('rows').innerText";

/// From now on each string of an answer has markup before it.
const DOCTOR: &str = "
    let full = null;
    const real = window.fetch;
    window.shown = (where, times) =>
        document.querySelector(where).innerText.split('<img src=x onerror=').length > times;
    window.fetch = async (...arguments) => {
        const data = await (await real(...arguments)).json();
        full = data.inFull || full;
        const evil = (key, value) =>
            typeof value === 'string' ? '<img src=x onerror=\"window.pwned=1\">' + value : value;
        return new Response(JSON.stringify({ ...data, inFull: full }, evil));
    }";

fn choose_filter(browser: &mut Browser, text: &str) {
    browser.evaluate(&format!(
        "const filter = document.getElementById('filter'); filter.value = '{text}'; \
         filter.dispatchEvent(new Event('input', {{ bubbles: true }}))"
    ));
}

#[test]
fn it_shows_services_traffic_and_what_is_wrong_and_goes_on_when_the_agent_comes_back() {
    let directory = TempDir::new().unwrap();
    let web = free_port(address());
    let endpoints = [backend(1), backend(2)];
    let taken = TcpListener::bind((address(), 0)).unwrap();
    let quoted = format!("'{EVIL}'");
    let annotated = service("annotated", free_port(address()))
        .replace("spec:", &format!("  annotations: {{sluice.dev/balance: {quoted}}}\nspec:"));
    let many = (0..120).map(|n| {
        let at = SocketAddr::from(([127, 65, 0, n + 1], 80));
        service(&format!("many-{n:03}"), at).replace("metadata:\n", "metadata:\n  namespace: zz\n")
    });
    let manifests = [
        service("web", web) + &slice("web", &endpoints),
        service("taken", taken.local_addr().unwrap()) + &slice("taken", &[backend(3)]),
        service(&quoted, free_port(address())),
        annotated,
        many.collect(),
    ];
    fs::write(directory.path().join("all.yaml"), manifests.concat()).unwrap();
    let (running, metrics) = agent(&directory, "127.0.0.1:0");
    let _traffic = Traffic::to(web);
    let mut browser = Browser::start();
    browser.open(&format!("http://{metrics}/"));

    browser.until("Services are shown", &format!("{ROWS}.includes('default/web')"));
    browser.until(
        "the list is one page of several",
        "document.getElementById('where').innerText == 'Page 1 of 3'",
    );
    // What is wrong, with its reason.
    for said in [
        "default/taken".to_owned(),
        format!("cannot listen on {}/TCP", taken.local_addr().unwrap()),
        "in use".to_owned(),
        "clients are refused: no endpoints".to_owned(),
    ] {
        browser.until(&said, &format!("document.getElementById('troubles').innerText.includes('{said}')"));
    }
    // A plot that moves.
    let line = "document.querySelector('#plots svg .stroke').getAttribute('d')";
    browser.until("there is a plot", &format!("{line}.includes('L')"));
    let before = browser.evaluate(line);
    browser.until("it moves", &format!("{line} != '{}'", before.as_str().unwrap()));
    browser.until(
        "it has a label",
        "/^New connections: now [0-9.]+\\/s/.test(document.querySelector('#plots svg').getAttribute('aria-label'))",
    );

    // By the keyboard: a Service in full, and what has the focus keeps it while all is drawn anew.
    choose_filter(&mut browser, "default/web");
    browser.until("one row is left", "document.querySelectorAll('#rows .open').length == 1");
    browser.evaluate("document.querySelector('#rows .open').focus()");
    browser.press_enter();
    for endpoint in &endpoints {
        browser.until("endpoints are shown", &format!("{ROWS}.includes('{endpoint}')"));
    }
    let before = browser.evaluate(line);
    browser.until("it is drawn anew", &format!("{line} != '{}'", before.as_str().unwrap()));
    let focus = "document.activeElement.matches('#rows .open[aria-expanded=true]')";
    assert_eq!(browser.evaluate(focus), true);
    browser.until(
        "the row's own numbers",
        "parseFloat(document.querySelector('#rows td[data-name=\"New/s\"]').innerText) > 0",
    );

    // One of many, none, and the next page.
    choose_filter(&mut browser, "many-077");
    browser.until("it is found", &format!("{ROWS}.includes('zz/many-077') && !{ROWS}.includes('many-078')"));
    choose_filter(&mut browser, "no-such-thing");
    browser.until(
        "that there is none is said",
        "document.getElementById('empty').innerText.includes('matches “no-such-thing”')",
    );
    choose_filter(&mut browser, "");
    browser.until("all are back", &format!("{ROWS}.includes('default/web')"));
    browser.evaluate("document.getElementById('next').click()");
    browser.until(
        "the second page",
        &format!("{ROWS}.includes('zz/many-050') && !{ROWS}.includes('default/web')"),
    );
    browser.evaluate("document.getElementById('previous').click()");
    browser.until("the first page", &format!("{ROWS}.includes('default/web')"));

    // What others wrote is text: the node's name and annotations as they are, everything else if it were so. (A Service
    // of such a name is refused before it gets here.)
    for id in ["node", "troubles"] {
        browser.until(id, &format!("document.getElementById('{id}').innerText.includes('<img src=x')"));
    }
    assert_eq!(browser.evaluate(&format!("{ROWS}.includes('<img')")), false);
    browser.evaluate(DOCTOR);
    choose_filter(&mut browser, "default/web");
    browser
        .until("it is doctored", "document.querySelectorAll('#rows .open').length == 1 && shown('#rows', 1)");
    browser.evaluate("document.querySelector('#rows .open').click()");
    browser.until(
        "all of it is shown",
        "shown('#rows .full', 4) && shown('#troubles', 2) && shown('#facts', 2)",
    );
    assert_eq!(browser.evaluate("document.querySelectorAll('img').length"), 1, "the icon");
    assert_eq!(browser.evaluate("typeof window.pwned"), "undefined");
    assert_eq!(browser.complaints(), [""; 0], "nothing is blocked, missing or broken");
    browser.open(&format!("http://{metrics}/"));
    browser.until(
        "the page is as it was",
        &format!("{ROWS}.includes('default/web') && !{ROWS}.includes('<img')"),
    );

    // Without the agent the page says so, and goes on by itself with the next one.
    drop(running);
    let away = "document.getElementById('away')";
    browser.until(
        "that it is away",
        &format!("!{away}.hidden && {away}.innerText.includes('does not answer since')"),
    );
    let (_running, again) = agent(&directory, &metrics.to_string());
    assert_eq!(again, metrics);
    browser.until("that it is back", &format!("{away}.hidden && {ROWS}.includes('default/web')"));
    browser.until("it is counted from there", &format!("!{line}.includes('NaN')"));
    assert_eq!(browser.evaluate("typeof window.pwned"), "undefined");
}
