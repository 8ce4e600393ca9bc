/**
 * A table of many rows, of which only the visible ones are elements. Rows are objects with an "id"; a row that has
 * changed is another object.
 */

import { fill, h } from "./dom.js";

const SPARE = 6;

export class Table {
  /**
   * @param columns each with key, title, cell(row) and, if the table can be ordered by it, order(row).
   * @param open called with a row that is clicked, or chosen with Enter.
   * @param sorted called with the name of the column that the user orders by, "-name" for the other direction.
   */
  constructor(label, columns, { open, sorted, tick } = {}) {
    this.columns = columns;
    this.rows = [];
    this.selected = null;
    this._open = open;
    this._tick = tick;
    this._shown = new Map();
    this._sort = null;
    // The position and height as events say them: to ask for them would lay the page out at each change.
    this._top = this._view = 0;
    this._heads = columns.map((column) => {
      const head = column.order
        ? h("button", { type: "button", onclick: () => sorted(this._sort === column.key ? `-${column.key}` : column.key) }, column.title)
        : h("span", {}, column.title);
      return h(`div.cell.${column.key}`, { role: "columnheader" }, head);
    });
    this._body = h("div.rows", { role: "rowgroup" });
    this._head = h("div.head", { role: "rowgroup" }, h("div.row", { role: "row" }, this._heads));
    this.grid = h("div.table", { role: "grid", tabindex: "0", "aria-label": label }, this._head, this._body);
    this.grid.addEventListener("scroll", () => { this._isWanted = false; this._measure(); this._render(); }, { passive: true });
    this.grid.addEventListener("keydown", (event) => this._key(event));
    this._size = new ResizeObserver(() => { this._height = null; this._measure(); this._render(); });
    this._size.observe(this.grid);
  }

  end() {
    this._size.disconnect();
  }

  /** Show these rows, in the order of a column ("" is theirs). */
  show(rows, sort = "") {
    const key = sort.replace(/^-/, "");
    const column = this.columns.find((each) => each.key === key);
    if (column?.order) {
      const direction = sort.startsWith("-") ? -1 : 1;
      const keyed = rows.map((row) => [column.order(row), row]);
      keyed.sort(([a, first], [b, second]) => (a < b ? -direction : a > b ? direction : first.id < second.id ? -1 : 1));
      rows = keyed.map(([, row]) => row);
    }
    if (sort !== this._sort) {
      this._sort = sort;
      this._heads.forEach((head, index) => {
        const { key: name } = this.columns[index];
        head.setAttribute("aria-sort", name !== key ? "none" : sort.startsWith("-") ? "descending" : "ascending");
      });
    }
    if (rows.length !== this.rows.length) this.grid.setAttribute("aria-rowcount", rows.length + 1);
    this.rows = rows;
    this._render();
  }

  /** Mark the row with this id; *scroll* to it, now or when the table has it, unless the user scrolls before. */
  select(id, { scroll = false } = {}) {
    this.selected = id;
    this._isWanted = scroll;
    this.settle();
    this._render();
  }

  /** Scroll to the selected row if that is still wanted, and the table has the row. */
  settle() {
    const index = this._isWanted ? this.rows.findIndex((row) => row.id === this.selected) : -1;
    if (index < 0) return;
    this._isWanted = false;
    this._reveal(index);
    this._render();
  }

  /** The rows that are to be seen. */
  visibleRows() {
    const [first, last] = this._window();
    return this.rows.slice(first, last);
  }

  /** Update what depends on the time. */
  tick() {
    for (const { row, element } of this._shown.values()) this._tick?.(row, element);
  }

  _measure() {
    this._top = this.grid.scrollTop;
    this._view = this.grid.clientHeight - this._head.offsetHeight;
  }

  _rowHeight() {
    if (!this._height) {
      const probe = h("div.row", { role: "presentation" });
      this._body.append(probe);
      this._height = probe.offsetHeight || 34;
      probe.remove();
    }
    return this._height;
  }

  _window() {
    const height = this._rowHeight();
    const first = Math.max(0, Math.floor(this._top / height) - SPARE);
    const last = Math.ceil((this._top + this._view) / height) + SPARE;
    return [first, Math.min(last, this.rows.length)];
  }

  _render() {
    const height = this._rowHeight();
    const whole = `${this.rows.length * height}px`;
    if (this._body.style.height !== whole) this._body.style.height = whole;
    const [first, last] = this._window();
    const seen = new Set();
    for (let index = first; index < last; index += 1) {
      const row = this.rows[index];
      seen.add(row.id);
      let shown = this._shown.get(row.id);
      if (shown?.row !== row) {
        shown?.element.remove();
        shown = { row, element: this._element(row) };
        this._shown.set(row.id, shown);
        this._body.append(shown.element);
        this._tick?.(row, shown.element);
      }
      const { element } = shown;
      if (shown.index !== index || shown.height !== height) {
        shown.index = index;
        shown.height = height;
        element.style.transform = `translateY(${index * height}px)`;
        element.setAttribute("aria-rowindex", index + 2);
      }
      if (shown.isSelected !== (row.id === this.selected)) {
        shown.isSelected = row.id === this.selected;
        element.setAttribute("aria-selected", shown.isSelected);
      }
    }
    for (const [id, shown] of this._shown) {
      if (!seen.has(id)) { shown.element.remove(); this._shown.delete(id); }
    }
    const active = this._shown.get(this.selected);
    if (active) this.grid.setAttribute("aria-activedescendant", active.element.id);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  _element(row) {
    this._count = (this._count ?? 0) + 1;
    return h("div.row", {
      role: "row", id: `row-${this._count}`, class: row.kind ? `row ${row.kind}` : "row",
      onclick: () => { this.select(row.id); this._open?.(row); },
    }, this.columns.map((column) => h(`div.cell.${column.key}`, { role: "gridcell" }, column.cell(row))));
  }

  _reveal(index) {
    if (index < 0) return;
    const height = this._rowHeight();
    this._measure();
    if (index * height < this._top) this.grid.scrollTop = index * height;
    else if ((index + 1) * height > this._top + this._view) this.grid.scrollTop = (index + 1) * height - this._view;
    this._measure();
  }

  _key(event) {
    if (event.target !== this.grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this._view / this._rowHeight()) - 1);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const current = this.rows.findIndex((row) => row.id === this.selected);
    if (event.key === "Enter" && current >= 0) {
      event.preventDefault();
      this._open?.(this.rows[current]);
    } else if (Object.hasOwn(steps, event.key) && this.rows.length) {
      event.preventDefault();
      const next = Math.min(Math.max(current + steps[event.key], 0), this.rows.length - 1);
      this.select(this.rows[next].id, { scroll: true });
    }
  }
}

/** Show a table, or in its place what is said when it is empty. */
export function tableOr(place, table, count, nothing) {
  if (count && place.firstChild !== table.grid) fill(place, table.grid);
  if (count) table.settle();
  if (!count) fill(place, nothing());
}
