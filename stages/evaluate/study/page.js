"use strict";
const $ = (id) => document.getElementById(id);
const PARTS = ["reference", "a", "b"];
const KEYS = { ArrowLeft: "A", ArrowRight: "B", ArrowDown: "tie" };
const PIXEL_ART_SIDE = 128; // pictures up to this size are enlarged without smoothing
const RETRY_SECONDS = 1.5;
const MAX_MILLISECONDS = 7 * 24 * 3600 * 1000; // as the server has it

// The token comes behind the '#', which browsers never send; it is kept for this tab alone and leaves the address.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) history.replaceState(null, "", location.pathname);
  try {
    if (given) sessionStorage.setItem("token", given);
    return sessionStorage.getItem("token");
  } catch {
    return given; // a browser that keeps nothing: the link has to be opened again after a reload
  }
}

const token = takeToken();
let session = null; // what the server last said
let asking = false; // whether an answer would count now
let shownAt = 0;
let shownTrial = null;
const loading = new Map(); // number of a trial -> promise of its pictures' addresses

class Refused extends Error {}

// Asks until there is an answer: a vote that is sent twice counts once.
async function ask(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${token}` } });
    } catch {
      response = null;
    }
    if (response && response.status < 500) {
      $("banner").hidden = true;
      if (response.status === 401) throw new Refused("This link isn't valid. Please ask for a new one.");
      return response;
    }
    $("banner").textContent = "The study can't be reached. Your answers so far are kept; trying again…";
    $("banner").hidden = false;
    await new Promise((resolve) => setTimeout(resolve, 1000 * RETRY_SECONDS));
  }
}

function load(number) {
  if (!loading.has(number)) {
    const pictures = PARTS.map(async (part) => {
      const response = await ask(`api/trials/${number}/${part}`);
      if (!response.ok) throw new Refused("A picture of the study can't be shown. Please tell who sent you the link.");
      return URL.createObjectURL(await response.blob());
    });
    loading.set(number, Promise.all(pictures));
  }
  return loading.get(number);
}

function show(name) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== name;
  $("count").textContent = session ? `${session.num_done} of ${session.num_trials} answered` : "";
  const share = session ? session.num_done / session.num_trials : 0;
  $("bar").style.width = `${100 * share}%`;
  $("track").setAttribute("aria-valuemax", session ? session.num_trials : 1);
  $("track").setAttribute("aria-valuenow", session ? session.num_done : 0);
}

function end(title, text) {
  asking = false;
  $("ending").textContent = title;
  $("after").textContent = text;
  show("end");
}

async function showTrial() {
  const number = session.num_done;
  if (session.question === null) {
    end("Thank you!", `All ${session.num_trials} are answered and kept. You can close this page.`);
    return;
  }
  show("trial");
  $("instruction").textContent = session.instruction;
  const place = session.questions.findIndex((question) => question.key === session.question);
  $("question").textContent = session.questions[place].text;
  if (session.questions.length > 1) {
    const count = Object.assign(document.createElement("small"), { textContent: `Question ${place + 1} of ${session.questions.length}` });
    $("question").prepend(count);
  }
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.classList.remove("taken");
    button.disabled = true;
  }
  if (shownTrial !== number) {
    $("trial").classList.add("waiting");
    const addresses = await load(number);
    // decoded before any is shown, so that all appear, and clips start, together
    const decoded = addresses.map((address) => Object.assign(new Image(), { src: address }));
    await Promise.all(decoded.map((image) => image.decode()));
    PARTS.forEach((part, index) => {
      const image = $(part);
      image.classList.toggle("pixels", Math.max(decoded[index].naturalWidth, decoded[index].naturalHeight) <= PIXEL_ART_SIDE);
      image.src = addresses[index];
    });
    $("trial").style.setProperty("--ratio", decoded[0].naturalWidth / decoded[0].naturalHeight);
    await Promise.all(PARTS.map((part) => $(part).decode()));
    $("trial").classList.remove("waiting");
    shownTrial = number;
    for (const [other, promise] of loading) {
      if (other < number) {
        loading.delete(other);
        promise.then((old) => old.forEach((address) => URL.revokeObjectURL(address)));
      }
    }
    if (number + 1 < session.num_trials) load(number + 1).catch(() => loading.delete(number + 1));
  }
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = false;
  shownAt = performance.now();
  asking = true;
}

async function choose(choice) {
  if (!asking) return;
  asking = false;
  const milliseconds = Math.min(Math.round(performance.now() - shownAt), MAX_MILLISECONDS);
  const vote = { trial: session.num_done, question: session.question, choice, milliseconds };
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.disabled = true;
    button.classList.toggle("taken", button.dataset.choice === choice);
  }
  document.activeElement?.blur();
  const response = await ask("api/votes", { method: "POST", body: JSON.stringify(vote) });
  if (!response.ok && response.status !== 409) throw new Error(`${response.status}`);
  const state = await response.json(); // 409: answered elsewhere, in another tab; the state says what is next
  delete state.detail;
  Object.assign(session, state);
  await showTrial();
}

function guarded(work) {
  return async (...given) => {
    try {
      await work(...given);
    } catch (error) {
      const text = error instanceof Refused ? error.message : "Please open your link again. Your answers so far are kept.";
      end("This can't go on", text);
    }
  };
}

const begin = guarded(showTrial);
const decide = guarded(choose);

async function welcome() {
  if (!token) throw new Refused("Please open the whole link that you were sent: the part behind the # is missing.");
  const response = await ask("api/session");
  session = await response.json();
  document.title = session.title;
  $("title").textContent = session.title;
  document.querySelector("[data-choice=tie]").hidden = !session.ties;
  $("greeting").textContent = session.num_done ? "Welcome back" : session.questions[0].text;
  $("criteria").replaceChildren(...session.criteria.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  const tie = session.ties ? ", ↓ if there is no difference" : "";
  $("keys").textContent = `Use the keys ← for A and → for B${tie}, or the buttons.`;
  if (session.question === null) return showTrial();
  show("intro");
  $("start").focus();
  load(session.num_done).catch(() => loading.clear());
}

$("start").addEventListener("click", begin);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => decide(button.dataset.choice));
}
document.addEventListener("keydown", (event) => {
  const choice = KEYS[event.key];
  if (!choice || $("trial").hidden || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  if (choice === "tie" && !session.ties) return;
  event.preventDefault();
  if (!event.repeat) decide(choice);
});
guarded(welcome)();
