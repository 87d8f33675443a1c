// RUN: analogc opt --passes 'outline-analog-to-calls{abi=buffer operands=input prefix=rt_}' %s | filecheck %s

func.func @main(%x: tensor<?x4x6x?xf32>, %w: tensor<6x2x3x3xf32>, %in: tensor<2xf32>, %adc: tensor<2xf32>)
    -> tensor<?x6x6x?xf32> {
  %y = "analog.conv"(%x, %w, %in, %adc) {
    stride = array<i64: 1, 2>, padding = array<i64: 1, 0>, dilation = array<i64: 1, 1>, groups = 2,
    dac = #analog.converter<8, "calibrated", {per_column = false}>,
    adc = #analog.converter<8, "calibrated", {per_column = false}>,
    rows = array<i64: 0, 9, 18>, weight_scale = "column", device = #analog.device<"ideal", {}>,
    settings = {output_noise = 0.0},
    mapping = #analog.mapping<"conv1", "conv1", {col_bounds = array<i64: 0, 3>, first_tile = 0,
                                                 tile_rows = 32, tile_cols = 8}>,
    operandSegmentSizes = array<i32: 1, 1, 0, 0, 1, 1>
  } : (tensor<?x4x6x?xf32>, tensor<6x2x3x3xf32>, tensor<2xf32>, tensor<2xf32>) -> tensor<?x6x6x?xf32>
  return %y : tensor<?x6x6x?xf32>
}

// CHECK: func.func private @rt_conv1(memref<?x4x6x?xf32>, memref<?x6x6x?xf32>)
// CHECK-SAME: analog.layer = "conv1", analog.op = "analog.conv", llvm.emit_c_interface
// CHECK: func.func @main(
// CHECK: %[[IN:.+]] = bufferization.to_buffer %arg0 read_only
// The size of the result: (n - 3) / 2 + 1.
// CHECK: %[[OUT:.+]] = memref.alloc(%{{.+}}, %{{.+}}) : memref<?x6x6x?xf32>
// CHECK: call @rt_conv1(%[[IN]], %[[OUT]])
// CHECK: %[[Y:.+]] = bufferization.to_tensor %[[OUT]] restrict writable
// CHECK: return %[[Y]]
