module {
  irdl.dialect @analog {
    irdl.type @tile {
      %0 = irdl.base "#builtin.integer" 
      %1 = irdl.base "#builtin.integer" 
      irdl.parameters(rows: %0, cols: %1)
    }
    irdl.attribute @converter {
      %0 = irdl.base "#builtin.integer" 
      %1 = irdl.base "#builtin.string" 
      %2 = irdl.base "#builtin.float" 
      %3 = irdl.any_of(%1, %2) 
      %4 = irdl.base "#builtin.dictionary" 
      irdl.parameters(bits: %0, range: %3, settings: %4)
    }
    irdl.attribute @ideal {
      irdl.parameters()
    }
    irdl.attribute @device {
      %0 = irdl.base "#builtin.string" 
      %1 = irdl.base "#builtin.dictionary" 
      irdl.parameters(kind: %0, settings: %1)
    }
    irdl.attribute @mapping {
      %0 = irdl.base "#builtin.string" 
      %1 = irdl.base "#builtin.string" 
      %2 = irdl.base "#builtin.dictionary" 
      irdl.parameters(layer: %0, array: %1, settings: %2)
    }
    irdl.operation @linear {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base "!builtin.tensor" 
      %2 = irdl.base "!builtin.tensor" 
      %3 = irdl.base "!builtin.tensor" 
      %4 = irdl.base "!builtin.tensor" 
      %5 = irdl.base "!builtin.tensor" 
      irdl.operands(x: %0, weight: %1, scale: optional %2, bias: optional %3, input_range: optional %4, adc_range: optional %5)
      %6 = irdl.base "#builtin.dense_array" 
      %7 = irdl.base @analog::@converter 
      %8 = irdl.base @analog::@ideal 
      %9 = irdl.any_of(%7, %8) 
      %10 = irdl.base @analog::@converter 
      %11 = irdl.base @analog::@ideal 
      %12 = irdl.any_of(%10, %11) 
      %13 = irdl.base "#builtin.string" 
      %14 = irdl.base @analog::@device 
      %15 = irdl.base "#builtin.dictionary" 
      %16 = irdl.base @analog::@mapping 
      irdl.attributes {"rows" = %6, "dac" = %9, "adc" = %12, "weight_scale" = %13, "device" = %14, "settings" = %15, "mapping" = %16}
      %17 = irdl.base "!builtin.tensor" 
      irdl.results(y: %17)
    }
    irdl.operation @conv {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base "!builtin.tensor" 
      %2 = irdl.base "!builtin.tensor" 
      %3 = irdl.base "!builtin.tensor" 
      %4 = irdl.base "!builtin.tensor" 
      %5 = irdl.base "!builtin.tensor" 
      irdl.operands(x: %0, weight: %1, scale: optional %2, bias: optional %3, input_range: optional %4, adc_range: optional %5)
      %6 = irdl.base "#builtin.dense_array" 
      %7 = irdl.base "#builtin.dense_array" 
      %8 = irdl.base "#builtin.dense_array" 
      %9 = irdl.base "#builtin.integer" 
      %10 = irdl.base "#builtin.dense_array" 
      %11 = irdl.base @analog::@converter 
      %12 = irdl.base @analog::@ideal 
      %13 = irdl.any_of(%11, %12) 
      %14 = irdl.base @analog::@converter 
      %15 = irdl.base @analog::@ideal 
      %16 = irdl.any_of(%14, %15) 
      %17 = irdl.base "#builtin.string" 
      %18 = irdl.base @analog::@device 
      %19 = irdl.base "#builtin.dictionary" 
      %20 = irdl.base @analog::@mapping 
      irdl.attributes {"stride" = %6, "padding" = %7, "dilation" = %8, "groups" = %9, "rows" = %10, "dac" = %13, "adc" = %16, "weight_scale" = %17, "device" = %18, "settings" = %19, "mapping" = %20}
      %21 = irdl.base "!builtin.tensor" 
      irdl.results(y: %21)
    }
    irdl.operation @scale {
      %0 = irdl.base "!builtin.tensor" 
      irdl.operands(weight: %0)
      %1 = irdl.base "#builtin.string" 
      irdl.attributes {"weight_scale" = %1}
      %2 = irdl.base "!builtin.tensor" 
      irdl.results(scale: %2)
    }
    irdl.operation @program {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base "!builtin.tensor" 
      irdl.operands(weight: %0, scale: %1)
      %2 = irdl.base "#builtin.string" 
      %3 = irdl.base "#builtin.integer" 
      %4 = irdl.base "#builtin.dense_array" 
      %5 = irdl.base "#builtin.integer" 
      %6 = irdl.base @analog::@device 
      %7 = irdl.base "#builtin.integer" 
      irdl.attributes {"array" = %2, "tile_id" = %3, "size" = %4, "columns_per_weight" = %5, "device" = %6, "written" = %7}
      %8 = irdl.base @analog::@tile 
      irdl.results(tile: %8)
    }
    irdl.operation @peak {
      %0 = irdl.base "!builtin.tensor" 
      irdl.operands(x: %0)
      %1 = irdl.base "!builtin.tensor" 
      irdl.results(peak: %1)
    }
    irdl.operation @dac {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base "!builtin.tensor" 
      irdl.operands(x: %0, range: %1)
      %2 = irdl.base @analog::@converter 
      irdl.attributes {"converter" = %2}
      %3 = irdl.base "!builtin.tensor" 
      irdl.results(codes: %3)
    }
    irdl.operation @mvm {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base @analog::@tile 
      irdl.operands(codes: %0, tile: %1)
      %2 = irdl.base "#builtin.dictionary" 
      irdl.attributes {"settings" = %2}
      %3 = irdl.base "!builtin.tensor" 
      irdl.results(sums: %3)
    }
    irdl.operation @conv_mvm {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base @analog::@tile 
      irdl.operands(codes: %0, tile: %1)
      %2 = irdl.base "#builtin.dense_array" 
      %3 = irdl.base "#builtin.dense_array" 
      %4 = irdl.base "#builtin.dense_array" 
      %5 = irdl.base "#builtin.dense_array" 
      %6 = irdl.base "#builtin.dictionary" 
      irdl.attributes {"kernel" = %2, "stride" = %3, "padding" = %4, "dilation" = %5, "settings" = %6}
      %7 = irdl.base "!builtin.tensor" 
      irdl.results(sums: %7)
    }
    irdl.operation @adc {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base "!builtin.tensor" 
      irdl.operands(sums: %0, range: %1)
      %2 = irdl.base @analog::@converter 
      %3 = irdl.base "#builtin.integer" 
      irdl.attributes {"converter" = %2, "axis" = %3}
      %4 = irdl.base "!builtin.tensor" 
      irdl.results(levels: %4)
    }
    irdl.operation @accumulate {
      %0 = irdl.base "!builtin.tensor" 
      %1 = irdl.base "!builtin.tensor" 
      %2 = irdl.base "!builtin.tensor" 
      %3 = irdl.base "!builtin.tensor" 
      irdl.operands(parts: variadic %0, units: variadic %1, scale: %2, bias: optional %3)
      %4 = irdl.base "#builtin.integer" 
      irdl.attributes {"axis" = %4}
      %5 = irdl.base "!builtin.tensor" 
      irdl.results(y: %5)
    }
  }
}
