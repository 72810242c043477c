// What is wrong with the layout of a page, as text, and how large its parts are: nothing here looks at a pixel.
(() => {
  const all = selector => [...document.querySelectorAll(selector)].filter(element => element.checkVisibility());
  const boxOf = element => element.getBoundingClientRect();
  const name = element => `${element.tagName} ${element.id || element.textContent.trim().slice(0, 40)}`;
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const pairs = elements => elements.flatMap((a, i) => elements.slice(i + 1).filter(b => overlap(boxOf(a), boxOf(b)))
    .map(b => `${name(a)} and ${name(b)}`));

  const textBox = element => { const range = document.createRange(); range.selectNodeContents(element); return boxOf(range); };
  const leaves = all("th, td, h1, h2, p, label, button, summary, figcaption, code");
  const outside = leaves.filter(element => getComputedStyle(element).textOverflow !== "ellipsis")
    .filter(element => { const [a, b] = [textBox(element), boxOf(element)];
                         return a.width > 0 && (a.left < b.left - 1 || a.right > b.right + 1); }).map(name);

  const luminance = rgb => rgb.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const numbers = colour => { const parts = colour.match(/[\d.]+/g).map(Number); return parts[3] === 0 ? null : parts.slice(0, 3); };
  const ground = element => !element ? [255, 255, 255]
    : numbers(getComputedStyle(element).backgroundColor) ?? ground(element.parentElement);
  const contrast = (colour, below) => { const [a, b] = [luminance(colour), luminance(below)].sort((x, y) => y - x);
                                        return (a + 0.05) / (b + 0.05); };
  const pale = [...leaves, ...all("a, option, select, dt, dd")].filter(element => element.closest("[aria-pressed=false]") === null)
    .filter(element => contrast(numbers(getComputedStyle(element).color), ground(element)) < 4.5).map(name);
  const chartText = all("#chart text");
  const paper = ground(document.body);

  const chart = boxOf(document.getElementById("chart")), plot = boxOf(document.querySelector("#chart .nsewdrag"));
  document.getElementById("chart").scrollIntoView({ block: "center" });
  const seen = boxOf(document.querySelector("#chart .nsewdrag"));
  const covered = [...Array(100).keys()].map(i => document.elementFromPoint(
    seen.left + seen.width * (i % 10 + 0.5) / 10, seen.top + seen.height * (Math.floor(i / 10) + 0.5) / 10))
    .filter(element => !element.classList.contains("nsewdrag")).map(name);
  return {
    width: document.documentElement.scrollWidth,
    tables: all(".scroll").map(element => element.scrollWidth - element.clientWidth),
    outside,
    overlaps: [...pairs(all("h1, h2, body > p, .controls > *, .scroll, details, #legend, #chart, figure, figure img")
      .filter(element => element.tagName !== "IMG")), ...pairs(chartText), ...pairs(all("thead th")), ...pairs(all("#legend button"))],
    pale: [...pale, ...chartText.filter(t => contrast(numbers(getComputedStyle(t).fill), paper) < 4.5).map(name)],
    faint: all("#chart .scatterlayer path.js-line").map(path => getComputedStyle(path).stroke)
      .filter(stroke => stroke !== "none" && contrast(numbers(stroke), paper) < 2),
    cut: chartText.filter(t => { const box = boxOf(t), now = boxOf(document.getElementById("chart"));
      return box.left < now.left - 1 || box.right > now.right + 1 || box.bottom > now.bottom + 1; }).map(name),
    covered,
    plot: [plot.width / chart.width, plot.height],
    images: all("#pictures img").map(image => [image.naturalWidth, boxOf(image).width]),
  };
})()
