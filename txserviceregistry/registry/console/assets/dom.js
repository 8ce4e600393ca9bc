/**
 * Elements, made from data. Text enters the page as text only, and characters that could mislead a reader (control
 * characters, changes of the writing direction, invisible ones) are shown as escapes.
 */

import { sleep } from "./time.js";

const MISLEADING =
  /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u202f\ufff0-\uffff]/gu;

/** Text as it is shown. */
export function visible(text) {
  return String(text).replace(MISLEADING, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Text as filters compare it: an accent may be a character of its own. */
export function folded(text) {
  return text.normalize().toLowerCase();
}

/** The words of a filter; each must occur. */
export function wordsOf(filter) {
  return folded(filter).split(/\s+/).filter(Boolean);
}

/**
 * An element. Attributes whose names begin with "on" are listeners; false and null leave one out. Children are elements,
 * texts, or lists of them.
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked") element[key] = value;
    else element.setAttribute(key, value === true ? "" : visible(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : visible(child)));
}

/** Replace the children of an element. If the focus was in a replaced child, it moves to the new one of the same name. */
export function fill(element, ...children) {
  const focused = document.activeElement;
  element.replaceChildren(...nodes(children));
  // Also one that is still there has lost the focus.
  if (document.activeElement !== focused) focusLike(focused, element);
  return element;
}

/** Give an element the focus, or the one in *place* that has its data-key, or else its name. */
function focusLike(element, place) {
  const nameOf = (each) => each.dataset.key ?? each.ariaLabel ?? each.textContent;
  const same = element?.isConnected ? element : [...place.querySelectorAll(element?.localName ?? "none")]
    .find((each) => nameOf(each) === nameOf(element));
  same?.focus({ preventScroll: true });
}

/**
 * Wait while the pointer is pressed on what can be clicked: a click is for what is there at the press and at the release.
 * Not for longer than five seconds, because the release may happen outside the window.
 */
export async function released() {
  for (let waits = 0; waits < 100 && document.querySelector("main :is(a, button, summary, .row):active"); waits += 1) {
    await sleep(50);
  }
}

/** An action that says why it failed, and does nothing while it goes on, as after a double click. */
function guarded(action) {
  return async (event) => {
    event.preventDefault();
    const element = event.currentTarget;
    if (element.ariaBusy || element.ariaDisabled) return;
    element.ariaBusy = "true";
    try {
      await action(event);
    } catch (error) {
      toast(error.message, "error");
    }
    element.ariaBusy = null;
  };
}

/** A button. */
export function button(text, action, attributes = {}) {
  return h("button", { type: "button", onclick: guarded(action), ...attributes }, text);
}

/** A form; *action* is called when it is submitted. */
export function formOf(action, ...children) {
  return h("form", { onsubmit: guarded(action) }, ...children);
}

/** The button that closes the details of an object. */
export function closeButton(close) {
  return button("×", close, { class: "quiet close", "aria-label": "Close", title: "Close (Escape)" });
}

/** A button that copies a text. */
export function copyButton(text, what = "") {
  const copy = button("Copy", async (event) => {
    event.stopPropagation();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without HTTPS a browser may refuse that; this works everywhere.
      const area = h("textarea", { value: text, class: "offscreen" });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1200);
  }, { class: "copy", "aria-label": `Copy ${what || text}` });
  return copy;
}

/** An identifier that can be copied. */
export function identifier(text, what = "") {
  return h("span.identifier", {}, h("bdi.mono", {}, text), copyButton(text, what));
}

/** Say something for a moment, at the edge of the page. */
export function toast(text, kind = "info") {
  const note = h(`div.toast.${kind}`, {}, text);
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), kind === "error" ? 9000 : 4000);
}

/**
 * A modal dialog. *content* gets a function that closes it. The returned promise has what was given to that function,
 * undefined after Escape.
 */
export function dialog(title, content, kind = "") {
  return new Promise((resolve) => {
    const before = document.activeElement;
    let outcome;
    const box = h("dialog", { "aria-labelledby": "dialog-title", class: kind });
    const close = (value) => { outcome = value; box.close(); };
    box.append(h("h2", { id: "dialog-title" }, title), ...nodes([content(close)]));
    box.addEventListener("close", () => {
      box.remove();
      focusLike(before, document);
      resolve(outcome);
    });
    document.body.append(box);
    box.showModal();
  });
}

/** The buttons at the end of a dialog's form. */
export function actions(close, text, kind = "primary") {
  return h("div.actions", {}, button("Cancel", () => close()), h("button", { type: "submit", class: kind }, text));
}

/** The text of a view without content: a sentence, and the next thing to do. */
export function empty(title, ...rest) {
  return h("div.empty", {}, h("h2", {}, title), ...rest);
}

/** A command that can be copied. */
export function command(text) {
  return h("div.command", {}, h("code", { tabindex: "0" }, text), copyButton(text, "the command"));
}
