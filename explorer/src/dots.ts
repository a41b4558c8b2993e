// A deck.gl layer of round dots. deck.gl's own layers draw each point as an instance of a quad, which
// costs a software renderer some 20 microseconds a point; here they are one draw call's point sprites.
import { Layer, type LayerProps, project32, type UpdateParameters } from "@deck.gl/core";
import { Model } from "@luma.gl/engine";

const BLOCK = `layout(std140) uniform dotsUniforms {
  float diameter;
  float hole;
} dots;`;
const uniforms = {
  name: "dots",
  vs: BLOCK,
  fs: BLOCK,
  uniformTypes: { diameter: "f32", hole: "f32" },
} as const;

const VERTEX = `#version 300 es
#define SHADER_NAME dots-vertex
in vec2 positions;
in vec4 colors;
out vec4 color;
void main() {
  gl_Position = project_position_to_clipspace(vec3(positions, 0.0), vec3(0.0), vec3(0.0));
  gl_PointSize = dots.diameter;
  color = vec4(colors.rgb, colors.a * layer.opacity);
}`;

const FRAGMENT = `#version 300 es
#define SHADER_NAME dots-fragment
precision highp float;
in vec4 color;
out vec4 fragColor;
void main() {
  vec2 offset = 2.0 * gl_PointCoord - 1.0;
  float square = dot(offset, offset);
  if (square > 1.0 || square < dots.hole) discard;
  fragColor = color;
}`;

interface DotsProps extends LayerProps {
  /** In pixels. */
  diameter: number;
  /** Width of the line of a ring, in pixels; 0 for a full dot. */
  line?: number;
  getColor?: [number, number, number, number];
}

/** Dots or rings of one size at `data.attributes.getPosition`, of one colour or `getColor` of each. */
export class DotsLayer extends Layer<Required<DotsProps>> {
  static override layerName = "DotsLayer";
  static override defaultProps = {
    diameter: 3,
    line: 0,
    getPosition: { type: "accessor", value: [0, 0] },
    getColor: { type: "accessor", value: [0, 0, 0, 255] },
  } as never;

  override getShaders() {
    return super.getShaders({ vs: VERTEX, fs: FRAGMENT, modules: [project32, uniforms] });
  }

  override initializeState(): void {
    this.getAttributeManager()!.add({
      positions: { size: 2, type: "float32", accessor: "getPosition" },
      colors: { size: 4, type: "unorm8", accessor: "getColor" },
    });
  }

  override updateState(change: UpdateParameters<this>): void {
    super.updateState(change);
    if (this.state.model) return;
    this.state.model = new Model(this.context.device, {
      ...this.getShaders(),
      id: this.props.id,
      bufferLayout: this.getAttributeManager()!.getBufferLayouts(),
      topology: "point-list",
      isInstanced: false,
    });
  }

  override draw(): void {
    const model = this.state.model as Model;
    const { diameter, line } = this.props;
    const hole = line ? (1 - (2 * line) / diameter) ** 2 : 0;
    model.setVertexCount(this.getNumInstances());
    model.shaderInputs.setProps({ dots: { diameter, hole } });
    model.draw(this.context.renderPass);
  }
}
