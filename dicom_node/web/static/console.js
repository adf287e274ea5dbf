"use strict";
// The console's only script: buttons post with the header that a foreign page cannot send; numbers refresh by themselves.
// Addresses are relative, so that the page works at the node and, passed on by the plugin, inside Orthanc.

async function change(path, body, show) {
  const message = document.getElementById("message");
  message.textContent = show ? "Asking …" : "";
  try {
    const answer = await fetch(path, {
      method: "POST",
      credentials: "same-origin",
      headers: { "Content-Type": "application/json", "X-Fedpacs": "1" },
      body: JSON.stringify(body || {}),
    });
    if (answer.ok) {
      if (show) {
        message.textContent = (await answer.json()).said;
        return;
      }
      location.reload();
      return;
    }
    const problem = await answer.json().catch(() => ({}));
    message.textContent = problem.error || "The node answered HTTP " + answer.status + ".";
  } catch (error) {
    message.textContent = "The node does not answer; nothing was changed.";
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) {
    return;
  }
  const body = JSON.parse(button.dataset.body || "{}");
  if (button.dataset.ask) {
    const reason = window.prompt(button.dataset.ask);
    if (reason === null || !reason.trim()) {
      return;
    }
    body.reason = reason.trim();
  }
  const form = button.closest("[data-form]");
  if (form) {
    for (const input of form.querySelectorAll("input[name], select[name]")) {
      body[input.name] = input.type === "password" ? input.value : input.value.trim();
    }
  }
  change(button.dataset.post, body, "show" in button.dataset);
});

async function refresh() {
  if (document.hidden) {
    return;
  }
  try {
    const answer = await fetch("status", { credentials: "same-origin", headers: { Accept: "application/json" } });
    if (!answer.ok) {
      return;
    }
    const status = await answer.json();
    for (const element of document.querySelectorAll("[data-value]")) {
      const value = element.dataset.value.split(".").reduce((v, key) => (v == null ? v : v[key]), status);
      if (value != null) {
        element.textContent = String(value);
      }
    }
  } catch (error) {
    // the next round tries again; the page says nothing false meanwhile, for its numbers stay dated
  }
}

if (document.querySelector("[data-value]")) {
  setInterval(refresh, 3000);
}

// A page whose body names a source of events shows what changed without being asked; what a person is typing or has opened stays.
const events = document.body.dataset.events;
if (events) {
  let first = true;
  new EventSource(events).addEventListener("changed", async () => {
    if (first) {
      first = false;
      return;
    }
    const busy = document.activeElement && document.activeElement.matches("input, select");
    if (busy || document.querySelector("details[open]")) {
      return;
    }
    const answer = await fetch(location.href, { credentials: "same-origin" });
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
      if (fresh) {
        document.getElementById("main").replaceWith(fresh);
      }
    }
  });
}
