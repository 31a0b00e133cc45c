"use strict";
// Texts come from anybody: they are only ever set as text.

const $ = (id) => document.getElementById(id);
const page = sessionStorage.getItem("page") || Math.random().toString(36).slice(2);
sessionStorage.setItem("page", page);
let pending = null, task = null, order = [], keys = new Map();

function button(text, key, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  if (key) keys.set(key, made);
  return made;
}

function image(side, number, alt) {
  const made = document.createElement("img");
  made.src = `${task.name}/${side}/${number}`;
  made.alt = alt;
  return made;
}

function show(next, waiting) {
  task = next; order = []; keys = new Map();
  $("task").hidden = !task;
  $("status").textContent = !task ? "Nothing to judge just now." : waiting === 1 ? "1 question" : `${waiting} questions`;
  if (!task) return;
  $("question").textContent = task.question;
  $("prompt").textContent = task.prompt;
  $("given").hidden = !task.given;
  $("given").replaceChildren(...Array.from({length: task.given}, (_, i) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    caption.textContent = "given";
    figure.append(image("given", i, `given picture ${i + 1}`), caption);
    return figure;
  }));
  if (task.kind === "grade") grades(); else pictures();
  $("question").focus();
}

function grades() {
  $("shown").replaceChildren(image("shown", 0, "what was made"));
  const made = Array.from({length: task.levels}, (_, i) => {
    const edge = i === 0 ? " (worst)" : i === task.levels - 1 ? " (best)" : "";
    return button(`${i + 1}${edge}`, String((i + 1) % 10), () => answer(i));
  });
  $("answers").replaceChildren(...made, button("cannot say", "s", () => answer(null)));
  $("help").textContent = "Keys: the grades' digits (0 for 10); s: cannot say.";
}

function pictures() {
  $("shown").replaceChildren(...Array.from({length: task.shown}, (_, i) => {
    const made = button("", i < 9 ? String(i + 1) : null, () => choose(i));
    made.className = "picture";
    made.setAttribute("aria-label", `picture ${i + 1}`);
    const label = document.createElement("span");
    label.textContent = `${i + 1}`;
    made.append(image("shown", i, ""), label);
    return made;
  }));
  $("answers").replaceChildren(
    button("the rest are equal", "0", () => answer(order)),
    button("begin again", "b", () => show(task, 1)),
    button("cannot say", "s", () => answer(null)));
  $("help").textContent = "Choose the best, then the best of the rest. Keys: the pictures' digits; 0: the rest are equal; b: begin again; s: cannot say.";
}

function choose(number) {
  if (order.includes(number)) return;
  order.push(number);
  const chosen = $("shown").children[number];
  chosen.setAttribute("aria-pressed", "true");
  chosen.lastChild.textContent = `${number + 1}: place ${order.length}`;
  if (order.length >= task.shown - 1) answer(order);
}

async function answer(value) {
  const asked = task;
  task = null;
  pending = asked.name;
  try {
    const body = JSON.stringify({name: asked.name, answer: value});
    const said = await fetch("answer", {method: "POST", headers: {"Content-Type": "application/json"}, body});
    if (!said.ok) throw new Error(said.statusText);
    if (!task) show(null, 0);
  } catch (error) {
    pending = null;
    show(asked, 1);
    $("status").textContent = "The answer was not taken; try again.";
  }
}

document.addEventListener("keydown", (event) => {
  if (!task || event.ctrlKey || event.metaKey || event.altKey) return;
  const pressed = keys.get(event.key);
  if (pressed) { event.preventDefault(); pressed.click(); }
});

async function look() {
  for (;;) {
    try {
      const said = await fetch(`task?page=${page}`);
      const {task: next, waiting} = await said.json();
      if (next && next.name === pending) continue;
      if (next && (!task || task.name !== next.name)) show(next, waiting);
      else if (!next && task) show(null, 0);
      else if (task) $("status").textContent = waiting === 1 ? "1 question" : `${waiting} questions`;
      else if (!next) $("status").textContent = "Nothing to judge just now.";
    } catch (error) {
      $("status").textContent = "There is no connection; the run may have ended.";
    }
    await new Promise((resolve) => setTimeout(resolve, task ? 1000 : 200));
  }
}
look();
