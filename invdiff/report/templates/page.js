"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // -- tables: numbers from the largest on at the first click, words from a on; what has no value stays at the end
  const valueOf = (row, column) => row.cells[column].dataset.value ?? "";
  for (const header of all(".board thead th")) {
    const button = header.querySelector(".sort");
    button?.addEventListener("click", () => {
      const body = header.closest("table").tBodies[0];
      const column = header.cellIndex;
      const numeric = header.classList.contains("number");
      const before = header.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numeric;
      const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return up ? compare(x, y) : compare(y, x);
      });
      body.append(...rows);
      for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  }

  // -- commands
  const copy = async (words) => {
    try {
      await navigator.clipboard.writeText(words);
    } catch {
      // Without a secure context, or the permission.
      const area = document.createElement("textarea");
      area.value = words;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      await copy(button.dataset.copy ?? button.nextElementSibling.textContent);
      button.textContent = "copied";
      button.classList.add("copied");
      setTimeout(() => {
        button.textContent = "copy";
        button.classList.remove("copied");
      }, 1500);
    });
  }
  const reveal = () => {
    const target = location.hash.startsWith("#again-") && document.getElementById(location.hash.slice(1));
    if (target) target.open = true;
  };
  addEventListener("hashchange", reveal);
  for (const link of all('a[href^="#again-"]')) {
    link.addEventListener("click", () => {
      document.getElementById(link.hash.slice(1)).open = true;
    });
  }
  reveal();
  // A browser that does not print what is closed.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details.again:not([open])");
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });

  // -- one image at a time
  for (const galleries of all(".galleries")) {
    const tabs = all(".tab", galleries);
    const panes = all(".gallery", galleries);
    const show = (k) => {
      tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", i === k));
      panes.forEach((pane, i) => pane.classList.toggle("off", i !== k));
    };
    tabs.forEach((tab, k) => tab.addEventListener("click", () => show(k)));
    if (tabs.length) {
      for (const pane of panes) pane.classList.add("tabbed");
      show(0);
    }
  }

  // -- the viewer: the zoomed region stays while pictures are flipped
  const viewer = document.getElementById("viewer");
  const frame = viewer.querySelector(".frame");
  const image = frame.querySelector("img");
  const title = document.getElementById("viewer-title");
  const zoomed = viewer.querySelector("output");
  const kindNames = { sample: "sample", mean: "mean", std: "std", error: "error" };
  let gallery, columns, at, kind, aspect;
  let zoom = 1, x = 0, y = 0; // x, y: the left upper corner of what is seen, in widths and heights of the picture

  const buttonOf = (column) => (column.pictures ? column.pictures[kind] : column.button);
  const show = () => {
    const column = columns[at];
    const button = buttonOf(column);
    const what = column.pictures ? `, ${kindNames[kind]}` : "";
    image.hidden = !button;
    if (button) {
      image.src = button.querySelector("img").src;
      image.alt = button.querySelector("img").alt;
    }
    title.textContent = `${gallery.dataset.name} · ${column.label}${what}${button ? "" : ": no picture"}`;
    all("#viewer-columns button").forEach((b, k) => {
      b.setAttribute("aria-pressed", k === at);
      if (k === at) b.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    for (const b of all("#viewer-kinds button")) {
      b.setAttribute("aria-pressed", Boolean(column.pictures) && b.dataset.what === kind);
      b.disabled = !column.pictures;
    }
  };
  const place = () => {
    x = Math.min(Math.max(x, 0), 1 - 1 / zoom);
    y = Math.min(Math.max(y, 0), 1 - 1 / zoom);
    image.style.transform = `scale(${zoom}) translate(${-100 * x}%, ${-100 * y}%)`;
    zoomed.textContent = `${zoom < 10 ? +zoom.toFixed(1) : Math.round(zoom)}×`;
  };
  // u, v: the point of the frame that stays where it is
  const zoomBy = (factor, u = 0.5, v = 0.5) => {
    const next = Math.min(Math.max(zoom * factor, 1), 32);
    x += u / zoom - u / next;
    y += v / zoom - v / next;
    zoom = next;
    place();
  };
  const fit = () => {
    const { width, height } = viewer.querySelector(".stage").getBoundingClientRect();
    const w = Math.min(width, height * aspect);
    frame.style.width = `${w}px`;
    frame.style.height = `${w / aspect}px`;
  };
  const flip = (step) => {
    at = (at + step + columns.length) % columns.length;
    show();
  };
  const turn = (step) => {
    const column = columns[at];
    if (!column.pictures) return;
    const kinds = Object.keys(kindNames).filter((name) => column.pictures[name]);
    kind = kinds[(kinds.indexOf(kind) + step + kinds.length) % kinds.length];
    show();
  };
  const chip = (words, act) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", act);
    return button;
  };

  const open = (button) => {
    gallery = button.closest(".gallery");
    columns = all(".shared .open", gallery).map((b) => ({ label: b.dataset.label, button: b }));
    const shared = columns.length;
    for (const b of all(".pictures .open", gallery)) {
      const k = shared + Number(b.dataset.column);
      columns[k] ??= { label: `${b.dataset.label}, ${b.dataset.where}`, short: b.dataset.label, pictures: {} };
      columns[k].pictures[b.dataset.what] = b;
    }
    columns = columns.filter(Boolean);
    at = columns.findIndex((c) => c.button === button || (c.pictures && Object.values(c.pictures).includes(button)));
    kind = button.dataset.what in kindNames ? button.dataset.what : "sample";
    const first = button.querySelector("img");
    const whole = gallery.querySelector('.open:not([data-what="measurement"]) img') ?? first;
    aspect = Number(whole.getAttribute("width")) / Number(whole.getAttribute("height"));
    const counts = {};
    for (const c of columns) counts[c.short] = (counts[c.short] ?? 0) + 1;
    document.getElementById("viewer-columns").replaceChildren(
      ...columns.map((c, k) => chip(c.short && counts[c.short] === 1 ? c.short : c.label, () => flip(k - at))),
    );
    const kinds = Object.keys(kindNames).filter((name) => columns.some((c) => c.pictures?.[name]));
    document.getElementById("viewer-kinds").replaceChildren(
      ...kinds.map((name) => {
        const b = chip(kindNames[name], () => {
          kind = name;
          show();
        });
        b.dataset.what = name;
        return b;
      }),
    );
    [zoom, x, y] = [1, 0, 0];
    viewer.showModal();
    fit();
    place();
    show();
    viewer.querySelector('[data-do="next"]').focus();
  };
  for (const button of all(".open")) button.addEventListener("click", () => open(button));

  const acts = {
    close: () => viewer.close(),
    previous: () => flip(-1),
    next: () => flip(1),
    in: () => zoomBy(2),
    out: () => zoomBy(0.5),
    reset: () => zoomBy(1 / zoom),
  };
  for (const button of all("[data-do]", viewer)) button.addEventListener("click", acts[button.dataset.do]);
  const keys = {
    ArrowLeft: acts.previous, ArrowRight: acts.next, ArrowUp: () => turn(-1), ArrowDown: () => turn(1),
    "+": acts.in, "=": acts.in, "-": acts.out, 0: acts.reset,
  };
  viewer.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  addEventListener("resize", () => viewer.open && fit());

  frame.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const box = frame.getBoundingClientRect();
      const [u, v] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      zoomBy(2 ** (-event.deltaY / 240), u, v);
    },
    { passive: false },
  );
  frame.addEventListener("dblclick", (event) => {
    const box = frame.getBoundingClientRect();
    zoomBy(2, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  // One finger drags, two pinch.
  const fingers = new Map();
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  frame.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const box = frame.getBoundingClientRect();
    const now = [event.clientX, event.clientY];
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const distance = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
      const middle = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
      zoomBy(distance(now) / distance(before), (middle[0] - box.left) / box.width, (middle[1] - box.top) / box.height);
    } else {
      x -= (now[0] - before[0]) / box.width / zoom;
      y -= (now[1] - before[1]) / box.height / zoom;
      place();
    }
    fingers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, (event) => fingers.delete(event.pointerId));
})();
