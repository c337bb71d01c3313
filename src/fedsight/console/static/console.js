// Keeps the live part of a page up to date. Everything else is plain pages and forms.

const login = document.getElementById("login");
if (login && location.hash.length > 1) {
  login.elements.token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname); // the token stays in no address bar
  login.submit();
}

const live = document.getElementById("live");
const lost = document.getElementById("lost");
let busy = false;
let again = false;

// Puts the page's live part as it is now in the place of the one that is shown.
async function refresh() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    do {
      again = false;
      const answer = await fetch(`${location.pathname}?fragment`);
      if (answer.status === 401) {
        location.assign(`${document.body.dataset.base}/session`);
        return;
      }
      if (!answer.ok) throw new Error(answer.statusText);
      replace(await answer.text());
    } while (again);
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  } finally {
    busy = false;
  }
}

// The focus, and what is unfolded or scrolled, stay as they were for whoever is reading.
function replace(html) {
  const focused = document.activeElement?.id;
  const open = [...live.querySelectorAll("details[open]")].map((one) => one.id);
  const scrolled = [...live.querySelectorAll("pre")].map((one) => one.scrollTop);
  live.innerHTML = html;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  live.querySelectorAll("pre").forEach((one, at) => (one.scrollTop = scrolled[at] ?? 0));
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

if (live) {
  const events = new EventSource(`${document.body.dataset.base}/events`);
  events.onmessage = (event) => {
    // The first event of every connection is about everything ("*").
    const changed = JSON.parse(event.data);
    const about = live.dataset.about;
    if (about === "*" || changed.includes("*") || changed.includes(about)) refresh();
  };
  // The console is gone, or the session has ended: `refresh` finds out which.
  events.onerror = refresh;
}
