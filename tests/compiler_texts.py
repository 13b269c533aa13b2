"""Texts as compilers write them, shortened: what `ssmkit.compilation` reads."""

HLO = """\
HloModule jit_run, is_scheduled=true, input_output_alias={ {1}: (0, {}, may-alias) }, entry_computation_layout={()->()}

%fused_a (p.1: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %tanh.1 = f32[8,4]{1,0:T(8,128)} tanh(%p.1), metadata={op_name="first"}
}

%fused_b (p.2: f32[8,4]) -> f32[8,4] {
  %p.2 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %tanh.2 = f32[8,4]{1,0:T(8,128)} tanh(%p.2), metadata={op_name="second"}
}

%condition (c.1: (s32[], f32[8,4])) -> pred[] {
  %c.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %four = s32[] constant(4)
  %index = s32[] get-tuple-element(%c.1), index=0
  ROOT %less = pred[] compare(%index, %four), direction=LT
}

%inner_body (b.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %b.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %x.1 = f32[8,4]{1,0} get-tuple-element(%b.1), index=1
  %permuted = f32[8,4]{1,0} collective-permute(%x.1), source_target_pairs={{0,1}}
  ROOT %t.1 = (s32[], f32[8,4]{1,0}) tuple(%b.1, %permuted)
}

%open (c.2: (s32[], f32[8,4])) -> pred[] {
  %c.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %flag = pred[] fusion(%c.2), kind=kLoop, calls=%fused_a
}

%outer_body (b.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %b.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  %while.2 = (s32[], f32[8,4]{1,0}) while(%b.2), condition=%condition, body=%inner_body
  %x.2 = f32[8,4]{1,0} get-tuple-element(%while.2), index=1
  %copy.7 = f32[8,4]{0,1} copy(%x.2)
  ROOT %t.2 = (s32[], f32[8,4]{1,0}) tuple(%b.2, %copy.7)
}

%called (p.3: f32[8,4]) -> f32[8,4] {
  %p.3 = f32[8,4]{1,0} parameter(0)
  ROOT %negate.1 = f32[8,4]{1,0} negate(%p.3)
}

ENTRY %main (state: f32[8,4], table: bf16[16,2]) -> (f32[8,4], f32[8,4]) {
  %state = f32[8,4]{1,0:T(8,128)} parameter(0)
  %table = bf16[16,2]{1,0} parameter(1)
  %fusion.1 = f32[8,4]{1,0:T(8,128)} fusion(%state), kind=kLoop, calls=%fused_a
  %fusion.2 = f32[8,4]{1,0:T(8,128)} fusion(%fusion.1), kind=kLoop, calls=%fused_b
  %fetched = (bf16[16,2]{1,0:S(1)}, bf16[16,2]{1,0}, u32[]) copy-start(%table)
  %fast = bf16[16,2]{1,0:S(1)} copy-done(%fetched)
  %moved = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]) copy-start(%state)
  %call.1 = f32[8,4]{1,0} call(%fusion.2), to_apply=%called
  %odd = f32[8,4]{1,0} custom-call(%call.1), custom_call_target="Odd"
  %while.1 = (s32[], f32[8,4]{1,0}) while(%odd), condition=%open, body=%outer_body
  %told = token[] outfeed(%odd), outfeed_config="x"
  ROOT %t.3 = (f32[8,4]{1,0}, f32[8,4]{1,0}) tuple(%odd, %odd)
}
"""

COLLECTIVES = """\
HloModule jit_run, is_scheduled=true, entry_computation_layout={()->()}

%all-reduce-scatter.1 (input: f32[64,8]) -> f32[16,8] {
  %input = f32[64,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,8]{1,0:T(8,128)} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[16,8]{1,0} dynamic-slice(%all-reduce.1, %here, %zero), dynamic_slice_sizes={16,8}
}

%begun (part.1: f32[2,8]) -> f32[8,8] {
  %part.1 = f32[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[8,8]{1,0} all-gather(%part.1), channel_id=45, dimensions={0}
}

%meanwhile (part.2: f32[2,8]) -> f32[8,8] {
  %part.2 = f32[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[8,8]{1,0} all-gather(%part.2), channel_id=45, dimensions={0}
}

ENTRY %main (part: f32[2,8], whole: f32[64,8], both: f32[4]) -> f32[16,8] {
  %part = f32[2,8]{1,0} parameter(0)
  %whole = f32[64,8]{1,0} parameter(1)
  %both = f32[4]{0} parameter(2)
  %async-collective-start = f32[8,8]{1,0} fusion(%part), kind=kCustom, calls=%begun
  %fusion.1 = f32[8,8]{1,0} fusion(%part), kind=kOutput, calls=%meanwhile
  %gathered = ((f32[2,8]{1,0}), f32[8,8]{1,0}) all-gather-start(%part), channel_id=1, dimensions={0}
  %whole.1 = f32[8,8]{1,0} all-gather-done(%gathered)
  %shifted = (f32[2,8]{1,0}, f32[2,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part), channel_id=1
  %shifted.1 = f32[2,8]{1,0} collective-permute-done(%shifted)
  %summed = (f32[4]{0}, f32[2,8]{1,0}) all-reduce(%both, %part), channel_id=2, to_apply=%add
  %scattered = f32[16,8]{1,0} reduce-scatter(%whole), channel_id=3, dimensions={0}, to_apply=%add
  ROOT %fusion.2 = f32[16,8]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
"""One gathering that a TPU spreads over two fusions, one that begins and ends by two instructions, a shift, a sum of
two arrays, and two sums that are scattered, of which one is a fusion."""

BUNDLES = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s0 = smov 0 } /* Start region 0 */
   0x1   :  { %s1 = smov 0 } /* End region 0 */
   0x2 LB: > { %s2 = sadd.s32 1, %s1  ;;  %p1 = scmp.ge.s32.totalorder %s2, 4 /* loop exit test */ }
   0x3   : > { %v1 = vld [vmem:[%s0]] }
   0x4 LB: >> { %s3 = sadd.s32 1, %s1 }
   0x5   : >> { %p2 = scmp.ge.s32.totalorder %s3, 8 /* loop exit test */ }
   0x6   :  {}
   0x7   : > { %4 = sbr.rel (!%p1) target = $region1 }
   0x8 LB: > { %s5 = sadd.s32 1, %s1  ;;  %p3 = scmp.ge.s32.totalorder %s5, %s6 /* loop exit test */ }
   0x9   :  { %5 = sfence }
"""
"""Two bundles; a loop of 4 trips of 3 bundles, in which a loop of 8 trips has 3 with the empty one; one of unknown
trips, of one bundle; and one bundle."""

THUNKS = """\
000: kCommandBuffer [source       | next=009 (1)]
    001: kCopy         [source       | next=002 (1)] kCopy
    002: kCustomKernel [source       | sink        ] loop_fusion grid: [1, 1, 1] threads: [1, 1, 1]
003: kCustomKernel [source       | sink        ] gemm grid: [1, 1, 1] threads: [1, 1, 1]
009: kWhile        [prev=000 (1) | next=073 (1)]
condition:
    010: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    000: kCommandBuffer [source       | next=031 (1)]
        011: kCopy         [source       | next=012 (1)] kCopy
        012: kCustomKernel [prev=011 (1) | sink        ] gemm_fusion grid: [1, 1, 1] threads: [1, 1, 1]
    031: kWhile        [prev=000 (1) | sink        ]
condition:
        032: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] threads: [1, 1, 1]
      body:
        033: kCustomKernel [source       | next=034 (1)] loop_a grid: [1, 1, 1] threads: [1, 1, 1]
        034: kCustomKernel [prev=033 (1) | sink        ] loop_b grid: [1, 1, 1] threads: [1, 1, 1]
073: kCustomKernel [prev=009 (1) | sink        ] loop_select grid: [1, 1, 1] threads: [1, 1, 1]
"""
