/* --- the page --- */

let data = JSON.parse(document.getElementById("data").textContent);
const galleries = new Map(all(document, "[data-gallery]").map((section) => [section.dataset.gallery, new Gallery(section)]));

function fill() {
  showCharts(data.sections);
  for (const [name, gallery] of galleries) gallery.fill(data.galleries[name]);
}

function trouble(text) {
  const note = document.getElementById("trouble");
  note.textContent = text;
  note.hidden = false;
}

showBar();
fill();
unpack()
  .then(redrawAll)
  .catch(() => trouble("The charts cannot be drawn: this needs a browser of 2023 or later. The folder of curves beside this page has them as pictures."));
dark.addEventListener("change", redrawAll);
for (const link of all(document, "nav a")) {
  link.addEventListener("click", () => {
    const folded = document.querySelector(`${link.getAttribute("href")} details`);
    if (folded && !link.hash.startsWith("#overview") && !link.hash.startsWith("#plan")) folded.open = true;
  });
}

/* --- while a run goes on: ask whether anything is new, and put it in its place --- */

const EVERY = 2000;

function renew(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const ids = (page) => all(page, "main > section").map((section) => section.id).join(" ");
  if (ids(fresh) !== ids(document)) return location.reload();
  data = JSON.parse(fresh.getElementById("data").textContent);
  for (const place of all(document, "[data-live]")) {
    const own = fresh.querySelector(`[data-live="${place.dataset.live}"]`);
    const open = all(place, "details").map((folded) => folded.open);
    place.replaceChildren(...own.childNodes);
    all(place, "details").forEach((folded, i) => (folded.open = open[i] || false));
  }
  fill();
}

async function ask() {
  const link = document.getElementById("link");
  try {
    const answer = await fetch(`now?${new URLSearchParams({ version: data.version })}`, { cache: "no-store" });
    if (answer.status === 200) renew(await answer.text());
    else if (answer.status !== 204) throw new Error(answer.status);
    if (link.textContent) link.textContent = "";
  } catch {
    link.textContent = "This page is no longer renewed: `flowfactory watch` was stopped, or the run cannot be read.";
  }
  setTimeout(ask, EVERY);
}

if (data.version !== null) setTimeout(ask, EVERY);
