"use strict";
// Light and dark: as the system says until the reader chooses; paper is always light.
const root = document.documentElement;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const redraws = [];
const colours = new Map();
let isPrinting = false;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches;
}

function showTheme() {
  root.style.colorScheme = isPrinting ? "light" : isDark() ? "dark" : "light";
  const button = document.getElementById("theme");
  button.setAttribute("aria-pressed", String(isDark()));
  colours.clear();
  for (const redraw of redraws) redraw();
}

function startTheme() {
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  systemIsDark.addEventListener("change", showTheme);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      isPrinting = printing;
      for (const part of document.querySelectorAll("details")) part.open = printing;
      showTheme();
    });
  }
  showTheme();
}

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

// A colour of the style sheet as canvas takes it, resolved for the theme.
function colour(name) {
  if (!colours.has(name)) {
    probe.style.color = `var(--${name})`;
    colours.set(name, getComputedStyle(probe).color);
  }
  return colours.get(name);
}

startTheme();
