// Asks the agent every two seconds, and shows what it says. All that comes from there goes in as text, never as markup.
"use strict";

const INTERVAL = 2000;
// An agent that has not answered by then is away.
const PATIENCE = 8000;

const $ = (id) => document.getElementById(id);

// What is asked for. The address has it, so that it outlives a reload and can be sent to somebody.
const choice = { filter: "", sort: "name", troubled: false, page: 0, open: null };

const tiles = {
  connections: new Tile("New connections", "", (n) => rate(n) + (n === null ? "" : "/s")),
  open: new Tile("Open connections", "", (n) => (n === null ? "–" : count(n))),
  out: new Tile("To clients", "", (n) => bytes(n) + (n === null ? "" : "/s")),
  in: new Tile("From clients", "", (n) => bytes(n) + (n === null ? "" : "/s")),
  failed: new Tile("Failed attempts", "failures", (n) => rate(n) + (n === null ? "" : "/s")),
  cpu: new Tile("Processors in use", "", (n) => (n === null ? "–" : n.toFixed(2)), 0.1),
};

// ---- Services ----

// By what a row is told apart from others.
function keyOf(item) {
  return JSON.stringify([item.namespace, item.name, item.port, item.protocol, item.family]);
}

class Row {
  constructor(item) {
    this.key = keyOf(item);
    this.connections = new Rates();
    this.bytes = new Rates();
    const port = item.port ? item.port + "/" + item.protocol : item.protocol;
    this.label = item.namespace + "/" + item.name + " " + port + " " + item.family;
    this.element = make("tr");
    this.full = make("tr", "full");
    for (const row of [this.element, this.full]) row.setAttribute("role", "row");
    const cell = (className, name) => {
      const td = make("td", className);
      td.setAttribute("role", "cell");
      if (name) td.dataset.name = name;
      this.element.append(td);
      return td;
    };

    const service = cell("service", "Service");
    this.button = make("button", "open");
    this.button.type = "button";
    this.button.setAttribute("aria-expanded", "false");
    const name = make("span", "name");
    name.append(make("span", "namespace", item.namespace + "/"), item.name + " ", make("span", "more", port + " " + item.family));
    this.button.append(name);
    this.button.addEventListener("click", () => {
      choice.open = choice.open === this.key ? null : this.key;
      chosen(true);
    });
    this.troubles = make("div");
    service.append(this.button, this.troubles);
    this.address = cell("address", "Address");
    this.endpoints = cell("endpoints", "Endpoints");
    this.pill = make("span", "pill");
    this.endpoints.append(this.pill);
    this.open = cell("number", "Open");
    this.rate = cell("number", "New/s");
    this.carried = cell("number", "Bytes/s");
    this.failed = cell("number", "Failed");
    this.plot = new Plot("New connections a second of " + this.label);
    cell("line", "New connections").append(this.plot.svg);

    this.content = make("td");
    this.content.colSpan = 8;
    this.content.setAttribute("role", "cell");
    this.full.append(this.content);
  }

  update(item, at) {
    const { traffic } = item;
    this.connections.add(traffic.total, at);
    this.bytes.add(traffic.bytesToEndpoint + traffic.bytesFromEndpoint, at);
    const more = item.frontends - item.addresses.length;
    const addresses = item.addresses.concat(more > 0 ? ["and " + more + " more"] : []);
    if (addresses.join() !== this.addresses) {
      this.addresses = addresses.join();
      this.address.replaceChildren(...addresses.map((text) => make("div", "", text)));
    }
    setText(this.pill, item.ready + " of " + item.endpoints + " ready");
    this.pill.className = "pill" + (item.ready === 0 ? " none" : item.ready < item.endpoints ? " some" : "");
    setText(this.open, count(traffic.open));
    setText(this.rate, rate(this.connections.now()));
    setText(this.carried, bytes(this.bytes.now()));
    setText(this.failed, count(traffic.failed));
    this.failed.classList.toggle("some", traffic.failed > 0);
    this.plot.draw(this.connections.values, "now " + rate(this.connections.now()) + ", at the most " + rate(this.connections.peak()));
    const said = JSON.stringify(item.troubles);
    if (said !== this.said) {
      this.said = said;
      this.troubles.replaceChildren(...item.troubles.map((text) => make("p", "trouble", text)));
    }
  }

  showInFull(port) {
    const isOpen = choice.open === this.key;
    this.button.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen || !port) return;
    const said = JSON.stringify(port);
    if (said === this.fullSaid) return;
    this.fullSaid = said;
    const list = (title, items, leftOut) => {
      const ul = make("ul");
      ul.append(...items);
      if (leftOut > 0) ul.append(make("li", "soft", "and " + count(leftOut) + " more: sluice services " + port.namespace + "/" + port.service));
      return [make("h3", "", title), ul];
    };
    const balance = port.balance + (port.affinitySeconds ? ", a client keeps its endpoint for " + time(port.affinitySeconds) : "");
    this.content.replaceChildren(
      ...list("Addresses (" + balance + ")", port.frontends.flatMap(frontend), port.frontendsLeftOut),
      ...list("Endpoints", port.endpoints.length ? port.endpoints.map(endpoint) : [make("li", "soft", "there is none")], port.endpointsLeftOut),
    );
  }
}

function frontend(frontend) {
  const line = (clients, outcome) => {
    const li = make("li");
    const only = frontend.allowedSources ? "; only for " + frontend.allowedSources.join(", ") : "";
    li.append(
      make("span", "address", frontend.address), make("span", "soft", frontend.kind),
      make("span", "", (clients ? clients + ": " : "") + outcome.verdict), make("span", "soft", outcome.why + only),
    );
    return li;
  };
  const { inside, outside } = frontend;
  const isSame = inside.verdict === outside.verdict && inside.why === outside.why;
  return isSame ? [line("", outside)] : [line("this node", inside), line("others", outside)];
}

function endpoint(endpoint) {
  const states = { ready: "ready", serving: "terminating, serving", terminating: "terminating", notReady: "not ready" };
  const passed = endpoint.passedOverSeconds;
  const isWell = endpoint.state === "ready" && passed === null;
  const state = states[endpoint.state] + (passed === null ? "" : ", keeps failing: passed over for " + time(Math.ceil(passed)));
  const { traffic } = endpoint;
  const li = make("li");
  li.append(
    make("span", "address", endpoint.address), make("span", "pill" + (isWell ? "" : " some"), state),
    make("span", "soft", (endpoint.isHere ? "this node" : "another node") + " · " + count(traffic.open) + " open · " + count(traffic.total)
      + " so far · " + count(traffic.failed) + " failed · " + bytes(traffic.bytesToEndpoint) + " there, " + bytes(traffic.bytesFromEndpoint) + " back"),
  );
  return li;
}

let rows = new Map();

function showServices(data, at) {
  const { services } = data;
  const former = rows;
  rows = new Map();
  const elements = [];
  for (const item of services.items) {
    const key = keyOf(item);
    const row = former.get(key) || new Row(item);
    row.update(item, at);
    row.showInFull(data.inFull);
    rows.set(key, row);
    elements.push(row.element);
    if (choice.open === key && row.content.childNodes.length) elements.push(row.full);
  }
  // What stays where it is keeps the focus.
  const body = $("rows");
  const isSame = body.children.length === elements.length && elements.every((element, n) => body.children[n] === element);
  if (!isSame) {
    const focused = document.activeElement;
    body.replaceChildren(...elements);
    if (focused && body.contains(focused)) focused.focus({ preventScroll: true });
  }

  choice.page = services.page;
  const isAsked = choice.filter !== "" || choice.troubled;
  setText($("services-count"), isAsked ? count(services.matched) + " of " + count(services.total) + " ports" : count(services.total) + " ports");
  $("table").hidden = services.items.length === 0;
  $("empty").hidden = services.items.length > 0;
  let why = "No Service has an address on this node so far.";
  if (services.total > 0) why = choice.filter ? "No Service port " + (choice.troubled ? "with problems " : "") + "matches “" + choice.filter + "”." : "No Service port has problems.";
  else if (!data.status.isSynced) why = "Services are not known so far: the agent is waiting for the apiserver.";
  setText($("empty"), why);
  $("pager").hidden = services.pages < 2;
  $("previous").disabled = services.page === 0;
  $("next").disabled = services.page + 1 >= services.pages;
  setText($("where"), "Page " + count(services.page + 1) + " of " + count(services.pages));
}

// ---- The agent ----

function showAgent(data, at) {
  const { status, traffic } = data;
  const counter = (name) => status.counters[name] || 0;
  setText($("node"), status.node);
  document.title = (status.isHealthy ? "" : "⚠ ") + status.node + " – Sluice";
  const [state, className] = status.isStopping ? ["stopping: connections may finish", "warn"]
    : !status.isHealthy ? ["not healthy", "bad"]
    : status.problems.length > 0 ? ["healthy, with problems", "warn"]
    : ["healthy", "good"];
  setText($("state"), state);
  $("state").className = "state " + className;
  const heard = status.ageSeconds === null ? "" : ", heard of " + time(status.ageSeconds) + " ago";
  setText($("facts"), "version " + status.version + " · " + status.mode + " · " + status.source + heard + " · up " + time(status.uptimeSeconds)
    + " · " + count(status.services) + " Services, " + count(status.endpoints) + " endpoints");

  const cpu = status.workerLoads.reduce((sum, load) => sum + load.cpuSeconds, 0);
  tiles.connections.rates.add(traffic.total, at);
  tiles.open.rates.push(traffic.open);
  tiles.in.rates.add(traffic.bytesToEndpoint, at);
  tiles.out.rates.add(traffic.bytesFromEndpoint, at);
  tiles.failed.rates.add(traffic.failed, at);
  tiles.cpu.rates.add(cpu, at);
  for (const tile of Object.values(tiles)) tile.draw();
}

let troublesSaid = null;

function showTroubles(data) {
  const own = data.status.problems.map((what) => ({ service: "this agent", what }));
  const all = own.concat(data.troubles.items);
  const total = own.length + data.troubles.count;
  setText($("wrong-count"), total ? count(total) : "");
  const left = total - all.length;
  $("troubles-rest").hidden = left === 0;
  setText($("troubles-rest"), left ? "and " + count(left) + " more: “only with problems” below, or the log, has them." : "");
  const said = JSON.stringify(all);
  if (said === troublesSaid) return;
  troublesSaid = said;
  $("troubles").replaceChildren(...(all.length ? all.map(({ service, what }) => {
    const li = make("li");
    li.append(make("b", "", service), what);
    return li;
  }) : [make("li", "none", "Nothing that this agent knows of.")]));
}

// ---- Asking ----

function question() {
  const query = new URLSearchParams({ sort: choice.sort, page: String(choice.page) });
  if (choice.filter) query.set("filter", choice.filter);
  if (choice.troubled) query.set("troubled", "yes");
  if (choice.open) {
    const names = ["namespace", "name", "port", "protocol", "family"];
    JSON.parse(choice.open).forEach((value, n) => query.set(names[n], value));
  }
  return "/status/data?" + query;
}

let awaySince = null;
let timer = null;
// Of two questions under way only the later one's answer counts.
let asked = 0;

async function look() {
  clearTimeout(timer);
  asked += 1;
  const mine = asked;
  let data = null;
  let why = "";
  try {
    const response = await fetch(question(), { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (response.ok) data = await response.json();
    else why = (await response.text()).trim();
  } catch (error) {
    why = error.name === "TimeoutError" ? "nothing within " + PATIENCE / 1000 + " s" : "";
  }
  if (mine !== asked) return;
  if (data) {
    const at = performance.now();
    awaySince = null;
    showAgent(data, at);
    showTroubles(data);
    showServices(data, at);
    $("main").removeAttribute("aria-busy");
  } else {
    awaySince = awaySince || new Date();
    const text = "The agent does not answer since " + awaySince.toLocaleTimeString() + (why ? " (" + why + ")" : "")
      + ". What is shown is what it said last; it is asked on.";
    setText($("away"), text);
    setText($("state"), "no answer");
    $("state").className = "state bad";
  }
  $("away").hidden = data !== null;
  $("main").classList.toggle("stale", data === null);
  // Nobody looks at a page that is hidden.
  if (!document.hidden) timer = setTimeout(look, INTERVAL);
}

function chosen(isNow) {
  const query = new URLSearchParams();
  if (choice.filter) query.set("filter", choice.filter);
  if (choice.sort !== "name") query.set("sort", choice.sort);
  if (choice.troubled) query.set("troubled", "yes");
  if (choice.page) query.set("page", String(choice.page));
  if (choice.open) query.set("open", choice.open);
  history.replaceState(null, "", "#" + query);
  clearTimeout(timer);
  timer = setTimeout(look, isNow ? 0 : 200);
}

// An address may have been written by anybody.
function isKey(text) {
  try {
    const names = JSON.parse(text);
    return Array.isArray(names) && names.length === 5 && names.every((name) => typeof name === "string");
  } catch {
    return false;
  }
}

function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1));
  choice.filter = query.get("filter") || "";
  choice.sort = query.get("sort") || "name";
  choice.troubled = query.has("troubled");
  choice.page = Math.max(0, Number.parseInt(query.get("page"), 10) || 0);
  choice.open = isKey(query.get("open")) ? query.get("open") : null;
  $("filter").value = choice.filter;
  $("sort").value = choice.sort;
  if ($("sort").value !== choice.sort) choice.sort = $("sort").value = "name";
  $("troubled").checked = choice.troubled;
}

$("plots").append(...Object.values(tiles).map((tile) => tile.element));
readAddress();
$("choice").addEventListener("submit", (event) => event.preventDefault());
$("filter").addEventListener("input", (event) => { choice.filter = event.target.value.trim(); choice.page = 0; chosen(false); });
$("sort").addEventListener("change", (event) => { choice.sort = event.target.value; choice.page = 0; chosen(true); });
$("troubled").addEventListener("change", (event) => { choice.troubled = event.target.checked; choice.page = 0; chosen(true); });
$("previous").addEventListener("click", () => { choice.page = Math.max(0, choice.page - 1); chosen(true); });
$("next").addEventListener("click", () => { choice.page += 1; chosen(true); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
