package tune_test

import (
	"context"
	"fmt"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/tune"
)

func ExampleTune() {
	shapes := []tune.Shape{{Op: tune.TernaryGEMV, M: 768, K: 768, Group: 128, Batch: 1}}
	plan, err := tune.Tune(context.Background(), shapes, tune.Options{Mode: tune.Off})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(plan.Set.Name == kernels.Best().Name)
	// Output: true
}
