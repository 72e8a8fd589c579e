// Draws a tree of nodes sent by element.py. Text only ever becomes text: no markup from a record can run here.
// A node: {t: tag, c: class, a: {attribute: value}, p: what a press sends, k: [children]}; a string is a text node.
const TAGS = new Set(
  "div section span p strong em button details summary ol ul li blockquote dl dt dd h2 h3 progress time".split(" ")
)
const ATTRIBUTES = /^(role|title|lang|type|value|max|datetime|disabled|aria-[a-z]+)$/
const NARROW_PX = 640 // where Streamlit stacks its columns

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root")
  const press = (payload, button) => {
    if (payload.copy !== undefined) return copy(payload, button)
    setTriggerValue("press", { ...payload, narrow: window.innerWidth <= NARROW_PX })
  }
  patchChildren(root, data.nodes, press)
  if (data.follow) follow(root)
}

// Shows the end first, and keeps a growing one in view unless the reader has scrolled away from it.
function follow(root) {
  const show = () => root.lastElementChild?.scrollIntoView({ block: "nearest" })
  if (root.followed === undefined) setTimeout(show, 200) // when what stands under it is drawn too
  if (root.followed <= window.innerHeight) show()
  root.followed = root.getBoundingClientRect().bottom
}

// Only what changed is replaced: the focus stays, opened details stay open, a screen reader hears new sentences only.
function patchChildren(parent, specs, press) {
  specs.forEach((spec, index) => {
    const old = parent.childNodes[index]
    const kept = old && fits(old, spec) ? old : make(spec)
    if (!old) parent.appendChild(kept)
    else if (kept !== old) parent.replaceChild(kept, old)
    if (typeof spec === "string") {
      if (kept.data !== spec) kept.data = spec
    } else {
      dress(kept, spec, press)
      patchChildren(kept, spec.k, press)
    }
  })
  while (parent.childNodes.length > specs.length) parent.lastChild.remove()
}

function fits(node, spec) {
  if (typeof spec === "string") return node.nodeType === Node.TEXT_NODE
  return node.nodeType === Node.ELEMENT_NODE && node.localName === spec.t
}

function make(spec) {
  if (typeof spec === "string") return document.createTextNode(spec)
  if (!TAGS.has(spec.t)) throw new Error(`element ${spec.t} is not drawn`)
  return document.createElement(spec.t)
}

function dress(node, spec, press) {
  if (node.className !== spec.c) node.className = spec.c
  for (const { name } of [...node.attributes]) {
    if (ATTRIBUTES.test(name) && !(name in spec.a)) node.removeAttribute(name)
  }
  for (const [name, value] of Object.entries(spec.a)) {
    if (ATTRIBUTES.test(name) && node.getAttribute(name) !== value) node.setAttribute(name, value)
  }
  node.onclick = spec.p ? () => press(spec.p, node) : null
}

async function copy({ copy, done }, button) {
  try {
    await navigator.clipboard.writeText(copy)
  } catch {
    // Without https browsers offer only the old way.
    const area = document.body.appendChild(document.createElement("textarea"))
    area.value = copy
    area.select()
    document.execCommand("copy")
    area.remove()
  }
  const label = button.textContent
  button.textContent = done
  setTimeout(() => (button.textContent = label), 1500)
}
