"""The script of reports: values of a chart under the pointer. It is part of the page; without scripts, dots have tooltips."""

SCRIPT = """
for (const svg of document.querySelectorAll(".chart svg[role=img]")) {
  const figure = svg.closest("figure"), width = svg.viewBox.baseVal.width
  const lines = [...svg.querySelectorAll("g[data-values]")].map(g => {
    const path = g.querySelector(".line"), dot = g.querySelector(".dot")
    const numbers = path ? path.getAttribute("d").match(/-?[\\d.]+/g).map(Number) : [dot.cx.baseVal.value, dot.cy.baseVal.value]
    const steps = g.dataset.steps.split("|"), values = g.dataset.values.split("|")
    return {name: g.dataset.name, tone: g.dataset.tone,
            points: steps.map((step, i) => ({step, value: values[i], x: numbers[2 * i], y: numbers[2 * i + 1]}))}
  })
  const points = lines.flatMap(line => line.points)
  if (!points.length) continue
  svg.querySelectorAll("title").forEach(title => title.remove())
  const draw = (kind, parent) => parent.appendChild(document.createElementNS("http" + "://www.w3.org/2000/svg", kind))
  const group = draw("g", svg), tip = figure.appendChild(document.createElement("div"))
  group.setAttribute("class", "cursor")
  tip.className = "tip"
  const hide = () => { group.replaceChildren(); tip.hidden = true }
  const show = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * width
    const near = points.reduce((best, point) => Math.abs(point.x - at) < Math.abs(best.x - at) ? point : best)
    hide()
    const rule = draw("path", group)
    rule.setAttribute("class", "rule")
    rule.setAttribute("d", `M${near.x} 10V${svg.viewBox.baseVal.height - 34}`)
    const rows = []
    for (const line of lines)
      for (const point of line.points.filter(point => point.step === near.step)) {
        const dot = draw("circle", group)
        for (const [key, value] of [["class", `dot ${line.tone}`], ["cx", point.x], ["cy", point.y], ["r", 4.5]]) dot.setAttribute(key, value)
        rows.push([line.name, point.value])
      }
    tip.replaceChildren(`${svg.dataset.axis || "step"} ${near.step}`, ...rows.map(([name, value]) => {
      const row = document.createElement("div"), strong = document.createElement("strong")
      strong.textContent = value
      row.append(`${name} `, strong)
      return row
    }))
    tip.hidden = false
    const frame = figure.getBoundingClientRect(), x = box.left - frame.left + near.x / width * box.width
    tip.style.left = `${Math.max(0, Math.min(x + 12 + tip.offsetWidth > frame.width ? x - 12 - tip.offsetWidth : x + 12, frame.width - tip.offsetWidth))}px`
    tip.style.top = `${box.top - frame.top + 8}px`
  }
  hide()
  svg.addEventListener("pointermove", show)
  svg.addEventListener("pointerdown", show)
  svg.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") hide() })
}
"""
"""Names and values are set as text, so no text of a run becomes markup."""
