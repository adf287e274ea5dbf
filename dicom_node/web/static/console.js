"use strict";
// The console's only script. Buttons post with the header that a foreign page cannot send; a page that shows something which changes
// is told so by server-sent events, or looks by itself now and then, and takes over the parts that differ.
// Addresses are relative, so that pages work at the node and, passed on by the plugin, inside Orthanc.

const POLL_MS = 5000;
let sending = false;

function say(text, bad) {
  const message = document.getElementById("message");
  message.classList.toggle("bad", Boolean(bad));
  message.textContent = text;
}

async function change(path, body, show) {
  say(show ? "Asking …" : "");
  sending = true;
  try {
    const answer = await fetch(path, {
      method: "POST",
      credentials: "same-origin",
      headers: { "Content-Type": "application/json", "X-Fedpacs": "1" },
      body: JSON.stringify(body || {}),
    });
    if (answer.ok) {
      if (show) {
        say((await answer.json()).said);
        refresh();
        return;
      }
      location.reload();
      return;
    }
    const problem = await answer.json().catch(() => ({}));
    say(problem.error || "The server answered HTTP " + answer.status + ".", true);
  } catch (error) {
    say("The server does not answer; nothing was changed.", true);
  } finally {
    sending = false;
  }
}

// A reason is asked for in a dialog of ours: it names what will happen, and Escape takes it back.
function ask(question, verb) {
  return new Promise((done) => {
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-labelledby", "question");
    dialog.innerHTML =
      '<form method="dialog"><h2 id="question"></h2><label>Reason, for the audit log<textarea name="reason" required maxlength="500"></textarea></label>' +
      '<div class="actions"><button class="main" value="yes"></button><button class="plain" value="no" formnovalidate>Cancel</button></div></form>';
    dialog.querySelector("h2").textContent = question;
    dialog.querySelector("button.main").textContent = verb;
    dialog.addEventListener("close", () => {
      const reason = dialog.querySelector("textarea").value.trim();
      dialog.remove();
      done(dialog.returnValue === "yes" ? reason : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

async function press(button) {
  const body = JSON.parse(button.dataset.body || "{}");
  const form = button.closest("[data-form]");
  if (form) {
    for (const input of form.querySelectorAll("input[name], select[name]")) {
      if (!input.reportValidity()) {
        return;
      }
      body[input.name] = input.type === "checkbox" ? input.checked : input.type === "password" ? input.value : input.value.trim();
    }
  }
  if (button.dataset.ask) {
    const reason = await ask(button.dataset.ask, button.textContent.trim());
    button.focus();
    if (!reason) {
      return;
    }
    body.reason = reason;
  }
  await change(button.dataset.post, body, "show" in button.dataset);
}

document.addEventListener("click", (event) => {
  const copy = event.target.closest("button[data-copy]");
  if (copy) {
    navigator.clipboard.writeText(copy.dataset.copy).then(() => say("Copied: " + copy.dataset.copy), () => say("Copying is not allowed here.", true));
  }
  const button = event.target.closest("button[data-post]");
  if (button) {
    press(button);
  }
});

document.addEventListener("keydown", (event) => {
  const form = event.key === "Enter" && event.target.matches("[data-form] input") && event.target.closest("[data-form]");
  if (form && form.querySelector("button[data-post]")) {
    event.preventDefault();
    press(form.querySelector("button[data-post]"));
  }
});

// What a person is typing, has opened or scrolled stays as it is.
function busy(part) {
  const active = document.activeElement;
  const typing = active && part.contains(active) && active.matches("input, select, textarea");
  const typed = [...part.querySelectorAll("input")].some((input) => input.value !== input.defaultValue);
  return typing || typed;
}

function adopt(old, fresh) {
  const open = [...old.querySelectorAll("details")].map((details) => details.open);
  const plain = old.cloneNode(true);
  plain.querySelectorAll("details").forEach((details) => details.removeAttribute("open"));
  plain.classList.remove("fresh");
  if (plain.outerHTML === fresh.outerHTML || busy(old)) {
    return;
  }
  const focused = old.contains(document.activeElement) ? [...old.querySelectorAll("a, button, summary, [tabindex]")].indexOf(document.activeElement) : -1;
  const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  fresh.querySelectorAll("details").forEach((details, index) => (details.open = Boolean(open[index])));
  old.replaceWith(fresh);
  fresh.classList.add("fresh");
  fresh.querySelectorAll(".scroll").forEach((one, index) => (one.scrollLeft = scrolled[index] || 0));
  if (focused >= 0) {
    fresh.querySelectorAll("a, button, summary, [tabindex]")[focused]?.focus();
  }
}

async function refresh() {
  if (document.hidden || sending || document.querySelector("dialog[open]")) {
    return;
  }
  try {
    const answer = await fetch(location.href, { credentials: "same-origin", headers: { Accept: "text/html" } });
    if (answer.redirected && new URL(answer.url).pathname.endsWith("/login")) {
      location.reload();
      return;
    }
    if (!answer.ok) {
      return;
    }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const names = (one) => [...one.querySelectorAll("main [data-live]")].map((part) => part.id).join();
    const main = document.getElementById("main");
    if (names(document) !== names(page) && !busy(main)) {
      main.replaceWith(page.getElementById("main")); // a part has come or gone
    }
    for (const old of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(old.id);
      if (fresh) {
        adopt(old, fresh);
      }
    }
    alive(true);
  } catch (error) {
    alive(false); // the next look tries again; the page says that its figures may be old
  }
}

function alive(yes) {
  const live = document.getElementById("live");
  if (live) {
    live.hidden = yes;
  }
}

const source = document.body.dataset.events;
if (document.querySelector("[data-live]")) {
  let known = document.body.dataset.seen || "";
  let told = 0;
  if (source && window.EventSource) {
    const events = new EventSource(source);
    events.addEventListener("changed", (event) => {
      told = Date.now();
      if (known !== event.data) {
        refresh();
      }
      known = event.data;
      alive(true);
    });
    events.addEventListener("still", () => {
      told = Date.now();
      alive(true);
    });
    events.addEventListener("error", () => alive(false));
    document.addEventListener("visibilitychange", refresh);
  }
  setInterval(() => (Date.now() - told > 20000 ? refresh() : undefined), POLL_MS);
}
