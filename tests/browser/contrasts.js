// Returns what was checked for contrast on this page, and what is poor (WCAG 2.2, 1.4.3 and 1.4.11).
() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, under) => {
    const mix = (part) => top[part] * top.a + under[part] * (1 - top.a);
    return { r: mix("r"), g: mix("g"), b: mix("b"), a: 1 };
  };
  // What is behind an element: its own background, over that of those around it.
  const behind = (element) => {
    if (!element) return parse(getComputedStyle(document.body).backgroundColor);
    const own = parse(getComputedStyle(element).backgroundColor);
    return own.a === 1 ? own : over(own, behind(element.parentElement));
  };
  const luminance = ({ r, g, b }) => {
    const [red, green, blue] = [r, g, b].map((part) => {
      const c = part / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ratio = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };

  const checked = [];
  const poor = [];
  const check = (what, front, back, least) => {
    const found = ratio(over(front, back), back);
    checked.push(what);
    if (found < least) poor.push(`${what}: ${found.toFixed(2)}, not ${least}`);
  };

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!text || !element.getClientRects().length) continue;
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (Number(style.opacity) !== 1) poor.push(`${text}: opacity ${style.opacity}`);
    check(text, parse(style.color), behind(element), large ? 3 : 4.5);
  }
  for (const element of document.querySelectorAll("button, input:not([type=hidden]), .icon")) {
    const style = getComputedStyle(element);
    const name = `${element.tagName} ${element.textContent.trim()}`;
    const around = behind(element.parentElement);
    const edge = element.matches(".icon") ? style.color : style.borderTopColor;
    check(`${name} (edge)`, parse(edge), around, 3);
    if (element.matches(".icon")) continue;
    element.focus();
    check(`${name} (focus)`, parse(getComputedStyle(element).outlineColor), around, 3);
  }
  return { checked, poor };
}
