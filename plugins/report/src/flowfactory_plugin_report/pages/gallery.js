/* --- samples, to step through by epoch --- */

const sign = (change) => (change.startsWith("+") ? "up" : change.startsWith("−") ? "down" : "");
const LETTERS = 20; // of a prompt, in a line above its picture
const NAME = 12; // letters of a reward that leave room for its score and its change in a line
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/* What rewards said beside scores, folded. */
function inWords(tile) {
  const said = Object.entries(tile.words).map(([name, text]) => made("p", {}, made("code", { text: name }), ` ${text}`));
  return said.length ? [made("details", { className: "words" }, made("summary", { text: "in words" }), ...said)] : [];
}

/* The tile of a column to be seen at an epoch: the latest that is not after it, or the first. */
function tileAt(column, epoch) {
  const past = column.tiles.filter((tile) => tile.epoch <= epoch);
  return past.length ? past[past.length - 1] : column.tiles[0];
}

/* A picture behind a window of one frame's size; a video is a strip of frames that moves behind it. */
function frameOf(tile, image, frame) {
  const [width, height, frames] = tile.size;
  image.parentElement.style.aspectRatio = `${width} / ${height}`;
  image.classList.toggle("pixels", width < 96);
  image.style.width = `${frames * 100}%`;
  image.style.transform = `translateX(${(-100 / frames) * (frame % frames)}%)`;
}

function showTile(node, tile, frame, named) {
  const { image, caption, button } = node;
  if (node.tile !== tile) {
    node.tile = tile;
    image.src = tile.data;
    image.alt = tile.prompt;
    button.setAttribute("aria-label", `Enlarge: ${tile.prompt}, epoch ${tile.epoch}`);
    button.dataset.frames = tile.size[2];
    node.element.dataset.epoch = tile.epoch;
    const scores = Object.entries(tile.scores).map(([label, [value, change]]) =>
      made("span", { className: label.length > NAME ? "score long" : "score" }, made("span", { text: label }), " ", made("b", { text: value }), ...(change ? [" ", made("i", { className: sign(change), text: change })] : [])),
    );
    caption.replaceChildren(made("span", { className: "epoch", text: `epoch ${tile.epoch}` }), ...scores, ...inWords(tile));
    node.prompt.textContent = tile.prompt;
    node.prompt.hidden = named;
  }
  frameOf(tile, image, frame);
}

function tileNode() {
  const image = made("img", { decoding: "async", draggable: false });
  const button = made("button", { type: "button", className: "window" }, image);
  const caption = made("figcaption");
  const prompt = made("p", { className: "prompt" });
  return { image, button, caption, prompt, tile: null, element: made("figure", { className: "tile" }, prompt, button, caption) };
}

function cardNode(card, gallery) {
  const columns = card.columns.map((column) => {
    const [first, now] = [tileNode(), tileNode()];
    const tiles = made("div", { className: "tiles" }, first.element, now.element);
    const head = data.runs.length > 1 && card.prompt ? [made("span", { className: "key" }, swatch(column.run), made("span", { text: data.runs[column.run] }))] : [];
    const node = { column, first, now, element: made("div", { className: "column" }, ...head, tiles) };
    for (const one of [first, now]) one.button.addEventListener("click", () => gallery.viewer.open(node, card));
    return node;
  });
  const head = card.prompt ? [made("h3", { className: "prompt", text: card.prompt })] : [];
  return { card, columns, element: made("article", { className: "card" }, ...head, made("div", { className: "columns" }, ...columns.map((node) => node.element))) };
}

class Gallery {
  constructor(section) {
    this.section = section;
    this.cards = [];
    this.at = 0;
    this.frame = 0;
    this.timers = {};
    this.viewer = new Viewer(this);
    this.controls();
  }

  controls() {
    const bar = this.section.querySelector(".bar");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", `Steps of ${this.section.querySelector("h2").textContent}`);
    this.slider = made("input", { type: "range", className: "step", min: 0, value: 0 });
    this.output = made("output");
    this.play = made("button", { type: "button", className: "epochs", text: "Play epochs" });
    this.beside = made("input", { type: "checkbox", className: "beside" });
    this.film = made("button", { type: "button", className: "play", text: "Play video" });
    this.frames = made("input", { type: "range", className: "frame", min: 0, max: 0, value: 0 });
    this.query = made("input", { type: "search", className: "query", placeholder: "words of a prompt" });
    this.score = made("select", { className: "by" });
    this.order = made("select", { className: "order" });
    for (const [value, text] of [["", "as in the data"], ["gain", "largest gain first"], ["loss", "largest loss first"], ["high", "highest score first"], ["low", "lowest score first"]]) {
      this.order.append(made("option", { value, text }));
    }
    this.least = made("input", { type: "number", className: "least", step: "any" });
    const filters = [labelled("find", this.query), labelled("reward", this.score), labelled("order", this.order), labelled("at least", this.least)];
    const steps = made("label", {}, made("span", { text: "epoch" }), this.slider, this.output);
    const films = made("span", { className: "films" }, this.film, labelled("frame", this.frames));
    bar.append(steps, this.play, labelled("beside the first", this.beside), films, made("span", { className: "filters" }, ...filters));
    this.slider.addEventListener("input", () => this.step(Number(this.slider.value)));
    this.beside.addEventListener("change", () => this.show());
    this.play.addEventListener("click", () => this.playEpochs());
    this.film.addEventListener("click", () => this.playFilm());
    this.frames.addEventListener("input", () => ((this.frame = Number(this.frames.value)), this.show()));
    for (const input of [this.query, this.least]) input.addEventListener("input", () => this.arrange());
    for (const choice of [this.score, this.order]) choice.addEventListener("change", () => this.arrange());
  }

  /* Show other cards, as when an epoch has ended: whoever looked at the newest goes on to do so. */
  fill(content) {
    const newest = !this.content || this.at === this.content.epochs.length - 1;
    const [epoch, chosen] = [this.content && this.content.epochs[this.at], this.score.value];
    this.content = content;
    this.cards = content.cards.map((card) => cardNode(card, this));
    const last = content.epochs.length - 1;
    this.at = newest ? last : Math.max(0, content.epochs.indexOf(epoch));
    this.slider.max = last;
    const tiles = content.cards.flatMap((card) => card.columns.flatMap((column) => column.tiles));
    const labels = [...new Set(tiles.flatMap((tile) => Object.keys(tile.scores)))];
    this.score.replaceChildren(...labels.map((label) => made("option", { value: label, text: label })));
    if (labels.includes(chosen)) this.score.value = chosen;
    const most = Math.max(1, ...tiles.map((tile) => tile.size[2]));
    this.frames.max = most - 1;
    this.section.querySelector(".films").hidden = most < 2;
    for (const one of [this.play, this.beside.parentElement]) one.hidden = last < 1;
    // As many lines as the longest prompt takes, so that nothing moves while epochs play.
    const longest = Math.max(...tiles.map((tile) => tile.prompt.length));
    this.section.style.setProperty("--lines", clamp(Math.ceil(longest / LETTERS), 1, 3));
    this.step(this.at);
    this.arrange();
  }

  get epoch() {
    return this.content.epochs[this.at];
  }

  step(at) {
    this.at = clamp(at, 0, this.content.epochs.length - 1);
    this.slider.value = this.at;
    this.output.textContent = this.epoch;
    this.slider.setAttribute("aria-valuetext", `epoch ${this.epoch}`);
    this.show();
  }

  show() {
    for (const { card, columns } of this.cards) {
      for (const { column, first, now } of columns) {
        const tile = tileAt(column, this.epoch);
        const before = column.tiles[0];
        first.element.hidden = !this.beside.checked || before === tile;
        if (!first.element.hidden) showTile(first, before, this.frame, card.prompt !== "");
        showTile(now, tile, this.frame, card.prompt !== "");
      }
    }
    this.viewer.show();
  }

  /* Which cards are seen, and in which order: by their best column at the chosen epoch. */
  arrange() {
    const words = this.query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const least = this.least.value === "" ? -Infinity : Number(this.least.value);
    const place = { gain: 3, loss: 3, high: 2, low: 2 }[this.order.value];
    const upward = ["loss", "low"].includes(this.order.value) ? 1 : -1;
    const valuesOf = (node, which) =>
      node.columns.map(({ column }) => (tileAt(column, this.epoch).scores[this.score.value] || [])[which]).filter((value) => value != null);
    const rank = (node) => {
      const found = valuesOf(node, place).map((value) => upward * value);
      return found.length ? Math.min(...found) : Infinity;
    };
    const text = (node) => (node.card.prompt || tileAt(node.columns[0].column, this.epoch).prompt).toLowerCase();
    const seen = this.cards.filter((node) => words.every((word) => text(node).includes(word)) && (least === -Infinity || valuesOf(node, 2).some((value) => value >= least)));
    const ordered = place ? [...seen].sort((a, b) => rank(a) - rank(b)) : seen;
    const nothing = made("p", { className: "about", text: "No sample is like that." });
    this.seen = ordered;
    this.section.querySelector(".cards").replaceChildren(...(ordered.length ? ordered.map((node) => node.element) : [nothing]));
  }

  running(name, button, words, tick, every) {
    if (this.timers[name]) {
      clearInterval(this.timers[name]);
      this.timers[name] = 0;
    } else this.timers[name] = setInterval(tick, every);
    button.textContent = this.timers[name] ? words[1] : words[0];
  }

  playEpochs() {
    const next = () => this.step(this.at >= this.content.epochs.length - 1 ? 0 : this.at + 1);
    this.running("epochs", this.play, ["Play epochs", "Pause epochs"], next, 600);
    this.viewer.playing();
  }

  playFilm() {
    const next = () => {
      this.frame = (this.frame + 1) % (Number(this.frames.max) + 1);
      this.frames.value = this.frame;
      this.show();
    };
    this.running("film", this.film, ["Play video", "Pause video"], next, 125);
    this.viewer.playing();
  }
}

/* --- one sample over the whole page, before and after --- */

class Viewer {
  constructor(gallery) {
    this.gallery = gallery;
    this.node = null;
  }

  build() {
    const button = (text, does) => {
      const one = made("button", { type: "button", text });
      one.addEventListener("click", does);
      return one;
    };
    this.prompt = made("h2", { className: "whole" });
    this.run = made("p", { className: "about" });
    [this.before, this.after] = [made("img", { draggable: false }), made("img", { draggable: false })];
    this.first = made("div", { className: "window first" }, this.before);
    this.stage = made("div", { className: "stage" }, made("div", { className: "window" }, this.after), this.first);
    this.wipe = made("input", { type: "range", className: "wipe", min: 0, max: 100, value: 0 });
    this.wipeLabel = labelled("first | chosen", this.wipe);
    this.epoch = made("input", { type: "range", className: "epoch", min: 0 });
    this.output = made("output");
    this.scores = made("div", { className: "scores" });
    this.links = made("p", { className: "links" });
    this.player = button("Play epochs", () => this.gallery.playEpochs());
    this.film = button("Play video", () => this.gallery.playFilm());
    const keys = made("p", { className: "about keyboard", text: `Keys: ← → epochs, ↑ ↓ samples, space plays the epochs, ${this.gallery.content.video ? "V the video, " : ""}B shows the first, Esc closes.` });
    const steps = made("div", { className: "bar" }, made("label", {}, made("span", { text: "epoch" }), this.epoch, this.output), this.player, this.film, this.wipeLabel);
    const ways = made("div", { className: "ways" }, button("Previous sample", () => this.go(-1)), button("Next sample", () => this.go(1)), button("Close", () => this.dialog.close()));
    this.dialog = made("dialog", { className: "over viewer", "aria-label": "Sample" }, ways, this.prompt, this.run, this.stage, steps, this.scores, this.links, keys);
    this.epoch.addEventListener("input", () => this.gallery.step(Number(this.epoch.value)));
    this.wipe.addEventListener("input", () => this.show());
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    document.body.append(this.dialog);
  }

  open(node, card) {
    if (!this.dialog) this.build();
    this.node = node;
    this.card = card;
    this.dialog.showModal();
    this.show();
  }

  key(event) {
    const range = event.target.type === "range";
    const does = {
      ArrowLeft: () => this.gallery.step(this.gallery.at - 1),
      ArrowRight: () => this.gallery.step(this.gallery.at + 1),
      ArrowUp: () => this.go(-1),
      ArrowDown: () => this.go(1),
      b: () => ((this.wipe.value = Number(this.wipe.value) > 50 ? 0 : 100), this.show()),
      v: () => this.film.hidden || this.gallery.playFilm(),
      " ": () => this.gallery.playEpochs(),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!does || range || (event.key === " " && event.target.tagName === "BUTTON") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    does();
  }

  /* The next sample of those that are seen, from run to run and from card to card. */
  go(step) {
    const nodes = this.gallery.seen.flatMap(({ card, columns }) => columns.map((node) => [node, card]));
    const place = nodes.findIndex(([node]) => node === this.node);
    if (nodes.length) [this.node, this.card] = nodes[(place + step + nodes.length) % nodes.length];
    this.show();
  }

  playing() {
    if (!this.dialog) return;
    this.player.textContent = this.gallery.play.textContent;
    this.film.textContent = this.gallery.film.textContent;
  }

  show() {
    if (!this.node || !this.dialog.open) return;
    if (!this.gallery.cards.some((one) => one.columns.includes(this.node))) this.again();
    const { column } = this.node;
    const [tile, first] = [tileAt(column, this.gallery.epoch), column.tiles[0]];
    this.film.hidden = tile.size[2] < 2;
    this.prompt.textContent = tile.prompt;
    this.run.textContent = data.runs[column.run];
    for (const [image, one] of [[this.after, tile], [this.before, first]]) {
      if (image.src !== one.data) image.src = one.data;
      image.alt = `${one.prompt}, epoch ${one.epoch}`;
      frameOf(one, image, this.gallery.frame);
    }
    this.stage.style.setProperty("--ratio", tile.size[0] / tile.size[1]);
    const compared = first !== tile && first.prompt === tile.prompt;
    this.wipeLabel.hidden = !compared;
    this.first.hidden = !compared;
    this.first.style.clipPath = `inset(0 ${100 - Number(this.wipe.value)}% 0 0)`;
    this.epoch.max = this.gallery.content.epochs.length - 1;
    this.epoch.value = this.gallery.at;
    this.output.textContent = tile.epoch;
    this.epoch.setAttribute("aria-valuetext", `epoch ${tile.epoch}`);
    this.scores.replaceChildren(
      ...Object.entries(tile.scores).map(([label, [value, change]]) => made("span", { className: "score" }, made("span", { text: label }), " ", made("b", { text: value }), ...(change ? [" ", made("i", { className: sign(change), text: change })] : []))),
    );
    this.scores.append(...inWords(tile));
    const names = { picture: "the picture at its full size", film: "the film" };
    this.links.replaceChildren(...Object.entries(tile.links).flatMap(([what, href]) => [made("a", { href, text: names[what], target: "_blank", rel: "noopener noreferrer" }), " "]));
    this.playing();
  }

  /* The same sample among new cards. */
  again() {
    const same = this.gallery.cards.find(({ card }) => card.prompt === this.card.prompt && card.columns.some((column) => column.run === this.node.column.run));
    const card = same || this.gallery.cards[0];
    this.card = card.card;
    this.node = card.columns.find((node) => node.column.run === this.node.column.run) || card.columns[0];
  }
}
