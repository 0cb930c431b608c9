// The chat page. State lives on the server; this script shows it and keeps only the key (for this tab) and the
// name of the open session (in the address, so that a reload finds it again).
"use strict";

const $ = (id) => document.getElementById(id);
const RETRY_MS_MAX = 15000;
const TITLE_CHARS_MAX = 60;

const state = {
  key: sessionStorage.getItem("millrace.key") || "",
  socket: null,
  ready: false,
  refused: false,
  retry: 500,
  session: "",
  sessions: [],
  // Another tab may speak in the same session: numbers from different places keep their answers apart.
  nextId: crypto.getRandomValues(new Uint32Array(1))[0] + 1,
  running: null, // {id, session, node, text, offset}
  unsent: null, // text that was sent while the connection was down
};

// ---- small helpers -------------------------------------------------------------------------------------------

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function newSessionName() {
  const random = crypto.getRandomValues(new Uint8Array(6));
  return "web-" + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function sessionInAddress() {
  const match = /^#s=(.+)$/.exec(location.hash);
  if (!match) return "";
  try {
    return decodeURIComponent(match[1]);
  } catch {
    return "";
  }
}

function atBottom() {
  const view = $("scroll");
  return view.scrollHeight - view.scrollTop - view.clientHeight < 80;
}

function toBottom() {
  const view = $("scroll");
  view.scrollTop = view.scrollHeight;
}

function setState(kind, text) {
  $("state").dataset.state = kind;
  $("state-text").textContent = text;
}

// ---- showing messages ----------------------------------------------------------------------------------------

// Fenced code and `code` become elements; everything else stays text. Nothing is parsed as HTML.
function showText(body, text) {
  body.replaceChildren();
  text.split(/\n*(```[^\n]*\n[\s\S]*?(?:```|$))\n*/).forEach((part) => {
    const fence = /^```[^\n]*\n([\s\S]*?)(?:```)?$/.exec(part);
    if (fence) {
      const pre = element("pre");
      pre.append(element("code", "", fence[1].replace(/\n$/, "")));
      body.append(pre);
      return;
    }
    part.split(/(`[^`\n]+`)/).forEach((piece) => {
      if (/^`[^`\n]+`$/.test(piece)) body.append(element("code", "", piece.slice(1, -1)));
      else if (piece) body.append(document.createTextNode(piece));
    });
  });
}

function addMessage(role, text) {
  const stick = atBottom();
  document.querySelector(".empty")?.remove();
  if (role === "notice" || role === "system" || role === "tool") {
    $("log").append(element("div", "notice", text));
    if (stick) toBottom();
    return null;
  }
  const node = element("article", "message " + role);
  if (role === "assistant") node.append(element("div", "who", "Millrace"));
  const body = element("div", "body");
  body.dataset.role = role;
  node.append(body);
  showText(body, text);
  $("log").append(node);
  if (stick) toBottom();
  return node;
}

function addFailure(error) {
  const stick = atBottom();
  document.querySelector(".empty")?.remove();
  const node = element("div", "failure");
  node.setAttribute("role", "alert");
  node.append(element("b", "", error.message || "Something went wrong."));
  if (error.next_step) node.append(document.createTextNode(error.next_step));
  $("log").append(node);
  if (stick) toBottom();
}

function showEmpty() {
  const node = element("div", "empty");
  const image = element("img");
  image.src = "/console/icon.svg";
  image.width = 52;
  image.height = 52;
  image.alt = "";
  node.append(image, element("h2", "", "How can I help?"), element("p", "", "Write a message below. What you tell me here I can recall in later chats."));
  $("log").replaceChildren(node);
}

function showTitle() {
  const known = state.sessions.find((session) => session.name === state.session);
  const title = (known && known.title) || "New chat";
  $("title").textContent = title;
  document.title = title === "New chat" ? "Millrace" : title + " – Millrace";
}

function showSessions() {
  const items = state.sessions.map((session) => {
    const button = element("button", "", session.title || session.name);
    button.type = "button";
    button.title = session.title || session.name;
    if (session.name === state.session) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => openSession(session.name));
    const item = element("li");
    item.append(button);
    return item;
  });
  $("sessions").replaceChildren(...items);
  showTitle();
}

function setRunning(running) {
  state.running = running;
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
}

// ---- sessions ------------------------------------------------------------------------------------------------

async function loadSessions() {
  try {
    const answer = await fetch("/v1/sessions?limit=100", { headers: { Authorization: "Bearer " + state.key } });
    if (!answer.ok) return;
    const list = (await answer.json()).data || [];
    state.sessions = list.map((item) => ({ name: item.name || item.id, title: (item.title || "").slice(0, TITLE_CHARS_MAX) }));
    showSessions();
  } catch {
    // The connection's own state shows that the server is away.
  }
}

function openSession(name) {
  if (state.running) stopRunning();
  setRunning(null);
  state.session = name;
  history.replaceState(null, "", "#s=" + encodeURIComponent(name));
  showEmpty();
  showSessions();
  closeSide();
  if (state.ready) send({ type: "history", session: name });
  $("text").focus();
}

// ---- the connection ------------------------------------------------------------------------------------------

function send(frame) {
  state.socket.send(JSON.stringify(frame));
}

function connect() {
  setState("", "connecting");
  const scheme = location.protocol === "https:" ? "wss://" : "ws://";
  const socket = new WebSocket(scheme + location.host + "/v1/chat/ws");
  state.socket = socket;
  socket.addEventListener("open", () => send({ type: "auth", key: state.key }));
  socket.addEventListener("message", (event) => {
    let frame;
    try {
      frame = JSON.parse(event.data);
    } catch {
      return;
    }
    receive(frame);
  });
  socket.addEventListener("close", () => {
    if (state.socket !== socket) return;
    state.ready = false;
    if (state.refused || !state.key) return finishRunning("");
    setState("off", "reconnecting");
    setTimeout(connect, state.retry + Math.random() * 250);
    state.retry = Math.min(state.retry * 2, RETRY_MS_MAX);
  });
}

function receive(frame) {
  const mine = state.running && frame.id === state.running.id;
  switch (frame.type) {
    case "ready":
      state.ready = true;
      state.retry = 500;
      sessionStorage.setItem("millrace.key", state.key);
      $("app").hidden = false;
      if ($("gate").open) $("gate").close();
      $("model").textContent = frame.model || "";
      setState("on", "connected");
      loadSessions();
      // An answer goes on for a while without its connection: the rest of it is wanted.
      if (state.running) send({ type: "resume", session: state.running.session, id: state.running.id, offset: state.running.offset });
      else send({ type: "history", session: state.session });
      $("text").focus();
      break;
    case "history":
      if (frame.session !== state.session || state.running) break;
      if (frame.messages.length) $("log").replaceChildren();
      else showEmpty();
      frame.messages.forEach((message) => addMessage(message.role, message.text));
      toBottom();
      if (state.unsent) {
        const text = state.unsent;
        state.unsent = null;
        submit(text);
      }
      break;
    case "delta":
      if (!mine) break;
      state.running.text += frame.text;
      state.running.offset = frame.offset;
      showRunning();
      break;
    case "notice":
      if (!mine && frame.id !== undefined) break;
      addMessage("notice", frame.text);
      if (mine) {
        state.running.offset = frame.offset;
        $("log").append(state.running.node);
      }
      break;
    case "done":
      if (!mine) break;
      finishRunning(summary(frame));
      loadSessions();
      break;
    case "error":
      fail(frame.error || {}, frame.id === undefined || frame.id === null || mine);
      break;
  }
}

function fail(error, concernsUs) {
  const about = String(error.code || error.type || "");
  if (!state.ready) {
    // The key was refused: ask again instead of trying for ever.
    state.refused = true;
    sessionStorage.removeItem("millrace.key");
    askForKey(error.message || "The key was refused (" + about + ").");
    return;
  }
  if (!concernsUs) return;
  finishRunning("");
  if (error.code === "reply_not_found" || error.code === "events_forgotten") {
    // We came back too late; what was finished stands in the history.
    send({ type: "history", session: state.session });
    return;
  }
  addFailure(error);
}

function summary(frame) {
  const parts = [];
  if (frame.usage && frame.usage.completion_tokens !== undefined) parts.push(frame.usage.completion_tokens + " tokens");
  if (state.running) {
    const seconds = (performance.now() - state.running.began) / 1000;
    parts.push(seconds.toFixed(1) + " s");
  }
  if (frame.finish_reason === "length") parts.push("ended at the length limit");
  if (frame.finish_reason === "cancelled" || frame.finish_reason === "abort") parts.push("stopped");
  return parts.join(" · ");
}

// Deltas can come faster than the screen; one paint shows all that arrived.
let painting = false;
function showRunning() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    if (!state.running) return;
    const stick = atBottom();
    showText(state.running.node.querySelector(".body"), state.running.text);
    if (stick) toBottom();
  });
}

function finishRunning(meta) {
  const running = state.running;
  if (!running) return;
  setRunning(null);
  running.node.classList.remove("running");
  showText(running.node.querySelector(".body"), running.text);
  if (meta) running.node.append(element("div", "meta", meta));
  if (!running.text && !meta) running.node.remove();
}

function stopRunning() {
  if (state.running && state.ready) send({ type: "stop", id: state.running.id });
}

function submit(text) {
  if (!state.ready) {
    state.unsent = text;
    addMessage("notice", "Not connected; the message is sent when the connection is back.");
    return;
  }
  addMessage("user", text);
  if (!state.sessions.some((session) => session.name === state.session)) {
    state.sessions.unshift({ name: state.session, title: text.slice(0, TITLE_CHARS_MAX) });
    showSessions();
  }
  const node = addMessage("assistant", "");
  node.classList.add("running");
  const id = state.nextId++;
  setRunning({ id, session: state.session, node, text: "", offset: 0, began: performance.now() });
  toBottom();
  send({ type: "send", session: state.session, text, id });
}

// ---- key, composer, keyboard -----------------------------------------------------------------------------------

function askForKey(message) {
  setState("off", "not connected");
  $("gate-error").hidden = !message;
  $("gate-error").textContent = message || "";
  $("app").hidden = true;
  if (!$("gate").open) $("gate").showModal();
  $("key").focus();
}

function closeSide() {
  $("side").classList.remove("open");
  $("veil").hidden = true;
  $("menu").setAttribute("aria-expanded", "false");
}

function fitComposer() {
  const box = $("text");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + "px";
}

function sendComposer() {
  const text = $("text").value.trim();
  if (!text || state.running) return;
  $("text").value = "";
  fitComposer();
  submit(text);
}

$("gate").addEventListener("cancel", (event) => event.preventDefault());
$("gate-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  $("key").value = "";
  if (!state.key) return;
  state.refused = false;
  connect();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendComposer();
});
$("text").addEventListener("input", fitComposer);
$("text").addEventListener("keydown", (event) => {
  // While an input method composes (Chinese, Japanese), Enter chooses a word.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    sendComposer();
  }
});
$("stop").addEventListener("click", stopRunning);
$("new").addEventListener("click", () => openSession(newSessionName()));
$("leave").addEventListener("click", () => {
  sessionStorage.removeItem("millrace.key");
  state.key = "";
  state.ready = false;
  state.sessions = [];
  state.socket?.close();
  setRunning(null);
  showEmpty();
  showSessions();
  askForKey("");
});
$("menu").addEventListener("click", () => {
  const open = $("side").classList.toggle("open");
  $("veil").hidden = !open;
  $("menu").setAttribute("aria-expanded", String(open));
});
$("veil").addEventListener("click", closeSide);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (state.running) stopRunning();
    else closeSide();
  }
  if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    openSession(newSessionName());
  }
});
window.addEventListener("hashchange", () => {
  const name = sessionInAddress();
  if (name && name !== state.session) openSession(name);
});

state.session = sessionInAddress() || newSessionName();
history.replaceState(null, "", "#s=" + encodeURIComponent(state.session));
showEmpty();
showSessions();
if (state.key) connect();
else askForKey("");
