// What must hold of every page, as functions that list what does not: loaded into a page by tests/browser.py.
() => {
  const seen = (e) => e.getBoundingClientRect().width > 0 && getComputedStyle(e).visibility !== "hidden";
  const named = (e) => `${e.localName} ${e.textContent.trim().slice(0, 40)}`;
  const wide = document.documentElement.clientWidth;
  const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);

  // A box that scrolls sideways, and that a reader can see does so: by a class that the page's style knows.
  const swiped = (e) => e.closest(".md-typeset__scrollwrap, pre, #presets");

  // Anything that leaves the screen, or the box that it should be seen in.
  const cutOff = all("th, td, figure, figure svg, figcaption, h1, h2, h3, p, select, button, pre, summary")
    .filter((e) => !swiped(e) && (e.getBoundingClientRect().left < -1 || e.getBoundingClientRect().right > wide + 1)).map(named);

  // Text of a chart outside the chart, and texts of a chart that lie over one another.
  const outside = all("figure svg text").filter((e) => {
    const at = e.getBoundingClientRect(), box = e.closest("figure").getBoundingClientRect();
    return at.left < box.left - 2 || at.right > box.right + 2 || at.top < box.top - 2 || at.bottom > box.bottom + 2;
  }).map(named);
  const overlaps = all("figure svg").flatMap((svg) => {
    const texts = [...svg.querySelectorAll("text")].filter((e) => seen(e) && e.textContent.trim()).map((e) => [e, e.getBoundingClientRect()]);
    return texts.flatMap(([a, p], i) => texts.slice(i + 1)
      .filter(([b, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4)
      .map(([b]) => `${named(a)} | ${named(b)}`));
  });

  // Text with less contrast to the paper than WCAG 2 asks for (4.5 to 1).
  const rgb = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
  const linear = (v) => v <= 10.3 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const paper = light(rgb(getComputedStyle(document.body).backgroundColor));
  const contrast = (e) => {
    const style = getComputedStyle(e), ink = light(rgb(e.localName === "text" ? style.fill : style.color));
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const faint = all("p, h1, h2, h3, th, td, summary, figcaption, footer, figure svg text, .run").filter((e) => e.textContent.trim() && contrast(e) < 4.5)
    .map((e) => `${named(e)}: ${contrast(e).toFixed(1)}`);

  // Header rows without a word.
  const emptyHeads = [...document.querySelectorAll("thead tr")].filter((row) => !row.textContent.trim()).map((row) => row.closest("table").textContent.slice(0, 60));
  const sideways = document.documentElement.scrollWidth - wide;
  return { cutOff, outside, overlaps, faint, emptyHeads, sideways };
}
