// The data of the page: deflated JSON in base64; columns of differences are summed up again.
async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent.trim());
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

function summed(steps) {
  const column = new Float64Array(steps.length);
  let total = 0;
  for (let k = 0; k < steps.length; k++) column[k] = total += steps[k];
  return column;
}

// How many values of a rising column are at most `value`.
function numUpTo(column, value) {
  let low = 0;
  let high = column.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (column[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

const whole = new Intl.NumberFormat("en");
const UNITS = [["s", 1e9], ["ms", 1e6], ["us", 1e3], ["ns", 1]];

// A time in a unit that fits `scale`, with as many decimals as steps of `step` need.
function timeText(ns, scale, step) {
  const [unit, size] = UNITS.find(([, least]) => scale >= least) ?? UNITS[3];
  const decimals = Math.min(Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-6)), Math.log10(size));
  const shown = (ns / size).toLocaleString("en", {
    minimumFractionDigits: decimals, maximumFractionDigits: decimals,
  });
  return `${shown} ${unit}`;
}

function percentText(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function create(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
